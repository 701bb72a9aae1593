"""Whether the services answer, let this user in, and do what runs ask of them."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError

from modcap.core.authorities import trusting
from modcap.core.errors import ModcapError, Unavailable
from modcap.core.messages import first_line, without_password
from modcap.flows.cli.machine_checks import Finding
from modcap.infra import local

__all__ = ["service_checks"]

_PATIENCE = "3"  # seconds; what runs answers at once
_SKEW, _REFUSED = 60.0, 900.0  # seconds; S3 takes no signature that is 15 minutes off
_CLIENT = "ray://"
_NOT_STARTED = "of the local stack, not started: the first run starts it"


def service_checks() -> Iterator[Finding]:
    """S3, MLflow, Prefect, Ray: those that the environment names, else those of the local stack
    that run."""
    os.environ.setdefault("MODCAP_PATIENCE", _PATIENCE)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    found = {service.name: service for service in local.status()}
    running = [name for name, service in found.items() if service.state == "running"]
    if running:
        os.environ.update(local.up(services=running).environment())
    for name, (title, check) in _CHECKS.items():
        service = found[name]
        if service.state == "stopped":
            yield Finding(title, "ok", _NOT_STARTED)
            continue
        yield _asked(title, service.address, check)
        if name == "s3":
            yield _clock()


def _asked(title: str, address: str, check: Callable[[], Finding | str]) -> Finding:
    try:
        found = check()
    except (ModcapError, OSError, subprocess.SubprocessError) as error:
        return Finding(title, "problem", without_password(first_line(error)), "as the line says")
    except Exception as error:  # of a service's own client
        said = f"{address}: {type(error).__name__}: {without_password(first_line(error))}"
        return Finding(title, "problem", said, "check its address, credentials and log")
    return Finding(title, "ok", f"{address}: {found}") if isinstance(found, str) else found


def _s3() -> Finding | str:
    """Writes, writes where there is something already, reads, lists and deletes one object."""
    from botocore.exceptions import ClientError

    from modcap.tasks.storage import s3
    from modcap.tasks.storage.store import Store

    store = Store.from_environment()
    name = f"doctor/{secrets.token_hex(8)}"
    doing = "written"
    try:
        try:
            store.put_document(name, b"first", unless="exists")
            doing = "written once alone"
            if store.put_document(name, b"second", unless="exists") is not None:
                said = f"bucket {store.bucket}: a conditional write overwrote an object"
                return Finding("S3", "problem", said, "use a server that knows If-None-Match")
            doing = "read"
            store.get_document(name)
            doing = "listed"
            next(store.entries("doctor"), None)
        finally:
            if doing != "written":
                store.delete_document(name)
                doing = "deleted"
    except ClientError as error:
        if s3.code_of(error) == "NoSuchBucket":
            return f"bucket {store.bucket} is not there yet: the first run makes it"
        said = f"bucket {store.bucket}: objects cannot be {doing} ({first_line(error)})"
        return Finding("S3", "problem", said, "rights as in infra/s3/driver.json")
    return f"bucket {store.bucket} takes, gives, lists and deletes"


def _clock() -> Finding:
    """Beside S3's, which signs nothing that is too far off."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    try:
        theirs = parsedate_to_datetime(_date_of(address or "https://s3.amazonaws.com"))
    except (ModcapError, OSError, TypeError, ValueError) as error:
        return Finding("clock", "warning", f"S3 does not tell the time ({first_line(error)})")
    skew = abs((datetime.now(timezone.utc) - theirs).total_seconds())
    said = f"{skew:.0f} s from that of S3"
    if skew < _SKEW:
        return Finding("clock", "ok", said)
    mend = "set it by NTP: requests are signed with the time"
    return Finding("clock", "problem" if skew > _REFUSED else "warning", said, mend)


def _date_of(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=5, context=trusting("S3")) as answer:
            return str(answer.headers["Date"])
    except HTTPError as error:  # which has a date as well
        with error:
            return str(error.headers["Date"])


def _mlflow() -> str:
    from modcap.flows.registry.mlflow_runs import reaching

    with reaching() as client:
        client.search_experiments(max_results=1)
        models = len(client.search_registered_models(max_results=1000))
    return f"{models} registered models"


def _prefect() -> str:
    from modcap.flows.execution.connect import require_prefect

    require_prefect(os.environ["PREFECT_API_URL"])
    return "it lets this user in"


def _ray() -> Finding | str:
    from modcap.infra.local.services import program

    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), 5).close()
    except OSError as error:
        raise Unavailable(
            f"Ray at {address} cannot be reached ({error}): check RAY_ADDRESS"
        ) from None
    if address.startswith(_CLIENT):
        return "its port answers"
    asked = [program("ray"), "health-check", "--address", address]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        return "its head answers"
    said = f"Ray at {address} does not answer, or does not take the token"
    return Finding("Ray", "problem", said, "check RAY_ADDRESS, RAY_AUTH_TOKEN, and its log")


_CHECKS: dict[str, tuple[str, Callable[[], Finding | str]]] = {
    "s3": ("S3", _s3),
    "mlflow": ("MLflow", _mlflow),
    "prefect": ("Prefect", _prefect),
    "ray": ("Ray", _ray),
}
