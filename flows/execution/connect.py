"""Connects a driver to the services: those that the environment names, or the local stack."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.error import HTTPError

from tenacity import (
    retry,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from modcap.core.authorities import check_authorities, mend_connection, trusting
from modcap.core.errors import InputError, Unavailable
from modcap.flows.execution.ending import ending_well
from modcap.infra import local

if TYPE_CHECKING:
    from modcap.tasks.storage.store import Store

__all__ = ["connected", "find_s3", "require_prefect", "use_services"]

_WARM_WORKERS = 8  # started while the driver still prepares


def use_services(*names: str, report: Callable[[str], None] = lambda line: None) -> None:
    """Starts what is missing of the local stack and puts every address into this environment.

    Must run before Prefect or MLflow are imported: they read their addresses at import.

    Args:
        names: the services that are needed; all of them by default.
        report: told of each service that is started.

    Raises:
        InputError: a file of certificate authorities that the environment names is none.
    """
    check_authorities()
    os.environ.update(local.up(services=names or local.NAMES, report=report).environment())
    if "prefect" in (names or local.NAMES):
        require_prefect(os.environ["PREFECT_API_URL"])


def find_s3() -> None:
    """For commands that start nothing: the local stack's S3, where it runs and the environment
    names no other and no credentials for one."""
    check_authorities()
    endpoint = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MODCAP_BUCKET")
    named = (*endpoint, "AWS_PROFILE", "AWS_ACCESS_KEY_ID")
    if any(os.environ.get(name) for name in named):
        return
    if any(s.name == "s3" and s.state == "running" for s in local.status()):
        os.environ.update(local.up(services=["s3"]).environment())


def require_prefect(address: str) -> None:
    """Asks a Prefect server whether it is there, a few times, and whether it lets this user in.

    Raises:
        Unavailable: it does not answer, or does not take the password.
    """
    try:
        _ask(f"{address.rstrip('/')}/admin/version")
    except HTTPError as error:
        error.close()
        if error.code not in (401, 403):
            raise Unavailable(f"Prefect at {address} answers with {error.code}") from None
        raise Unavailable(
            f"Prefect at {address} does not let this user in ({error.code}): check "
            f"PREFECT_API_AUTH_STRING"
        ) from None
    except OSError as error:
        mend = mend_connection("Prefect", str(error), "check PREFECT_API_URL")
        raise Unavailable(f"Prefect at {address} cannot be reached ({error}): {mend}") from None


@retry(
    stop=stop_after_attempt(4),
    wait=wait_random_exponential(0.5, 4),
    retry=retry_if_not_exception_type((HTTPError, InputError)),
    reraise=True,
)
def _ask(url: str) -> None:
    request = urllib.request.Request(url)
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
    elif key := os.environ.get("PREFECT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=5, context=trusting("Prefect")):
        pass


@contextlib.contextmanager
def connected() -> Iterator[Store]:
    """The store, with Ray connected; leaves Ray as it was found."""
    import ray  # reads its address and token from the environment when it is imported

    from modcap.flows.execution.prefect_control import FlowControl
    from modcap.tasks.storage.lease import give_all_back
    from modcap.tasks.storage.store import Store
    from modcap.tasks.workers.ray_jobs import warm_up

    control = FlowControl(lambda: None)
    store = Store.from_environment()
    store.ensure_bucket()
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(
                address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            address = os.environ["RAY_ADDRESS"]
            first = str(error).splitlines()[0]
            raise Unavailable(
                f"Ray at {address} cannot be reached ({first}): check RAY_ADDRESS"
            ) from None
    for _ in range(min(_WARM_WORKERS, int(ray.cluster_resources().get("CPU", 0)))):
        warm_up.remote(store)
    try:
        cleanups = (lambda why: ray.shutdown(), control.mark_crashed, lambda why: give_all_back())
        with ending_well(*cleanups):
            yield store
    finally:
        if ours:
            ray.shutdown()
