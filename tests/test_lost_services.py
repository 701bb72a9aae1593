"""A service that was there and goes is no bad input: one line, and exit 1."""

from __future__ import annotations

import os
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
import ray
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow.exceptions import MlflowException
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    PREFECT_CLIENT_RETRY_JITTER_FACTOR,
    temporary_settings,
)

from modcap.core.errors import InputError, Lost, Unavailable
from modcap.flows import cli
from modcap.flows.execution import connect, ray_tasks
from modcap.flows.registry import mlflow_runs
from modcap.tasks.storage import objects, s3
from modcap.tasks.workers.idle import Idle

AWAY = EndpointConnectionError(endpoint_url="http://127.0.0.1:9/b")
DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetObject")
_REQUEST = httpx.Request("POST", "http://prefect:4200/api/logs/")
DATABASE = PrefectHTTPStatusError(  # Prefect's is away
    "Server error '500'", request=_REQUEST, response=httpx.Response(500, request=_REQUEST)
)
NO_MLFLOW = MlflowException("API request to /x failed with Max retries (Caused by refused)")


@pytest.mark.parametrize(
    ("error", "word", "code"),
    [
        (AWAY, "S3: EndpointConnectionError", 1),
        (DENIED, "S3: ClientError", 1),
        (NO_MLFLOW, "MLflow: MlflowException", 1),
        (DATABASE, "Prefect: PrefectHTTPStatusError: Server error", 1),
        (ray.exceptions.RaySystemError("GCS is gone"), "Ray: RaySystemError", 1),
        (Lost("the lease x is another one's"), "the lease x", 1),
        (Unavailable("s3://b/c: there is none"), "s3://b/c", 2),
        (InputError("k is too large"), "k is", 2),
    ],
)
def test_what_ends_a_command_is_one_line(
    error: Exception,
    word: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"modcap: {word}")


class Restarting(BaseHTTPRequestHandler):
    """A Prefect server whose database comes back after the first request."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = b'{"exception_message": "Internal Server Error"}'
        self.send_response(500 if len(self.asked) == 1 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_command_asks_again_while_prefects_database_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefect answers 500 meanwhile, which its client would not try again."""
    monkeypatch.delenv("PREFECT_CLIENT_RETRY_EXTRA_CODES", raising=False)
    with cli._as_a_command(), HTTPServer(("127.0.0.1", 0), Restarting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        codes = os.environ["PREFECT_CLIENT_RETRY_EXTRA_CODES"]
        settings = {
            PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api",
            PREFECT_CLIENT_RETRY_EXTRA_CODES: codes,
            PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0,
            PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
        }
        with temporary_settings(settings), get_client(sync_client=True) as client:
            answer = client._client.post("/flow_runs/")
        server.shutdown()
    monkeypatch.setenv("PREFECT_CLIENT_RETRY_EXTRA_CODES", codes)  # and taken back
    assert answer.status_code == 200
    assert Restarting.asked == ["/api/flow_runs/"] * 2


def test_what_is_nobodys_service_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(KeyError):
        cli.main([])


def test_mlflow_that_goes_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mlflow_runs, "_reached", set())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for expected in (Unavailable, Lost):
        with pytest.raises(Unavailable) as caught, mlflow_runs.reaching():
            raise NO_MLFLOW
        assert type(caught.value) is expected
        with mlflow_runs.reaching():
            pass


def test_s3_that_goes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_answered", set())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert type(objects._unreadable("s3://b/c", AWAY)) is Unavailable
    s3.answered(os.environ["AWS_ENDPOINT_URL_S3"])
    assert type(objects._unreadable("s3://b/c", AWAY)) is Lost
    assert type(objects._unreadable("s3://b/c", DENIED)) is Unavailable


@pytest.mark.parametrize("cause", [AWAY, DENIED, ray.exceptions.ObjectLostError("x", None, "")])
def test_a_job_without_its_services_is_everybodys(cause: Exception) -> None:
    with pytest.raises(Lost) as caught:
        ray_tasks._of_the_job(cause)
    assert caught.value.exit_code == 1


def test_an_idle_worker_gives_up_what_it_kept_and_a_busy_one_does_not() -> None:
    released = threading.Event()
    idle = Idle(released.set, 0.1)
    with idle.busy():
        pass
    with idle.busy():  # before it counted as idle
        assert not released.wait(0.3)
    assert released.wait(5)
    released.clear()
    time.sleep(0.2)
    assert not released.is_set()


class Guarded(BaseHTTPRequestHandler):
    """A Prefect server with the password p."""

    def do_GET(self) -> None:
        right = self.headers["Authorization"] == "Basic " + b64encode(b"u:p").decode()
        self.send_response(200 if right else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_prefect_that_does_not_take_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "u:p")
        connect.require_prefect(address)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "u:wrong")
        with pytest.raises(Unavailable, match="check PREFECT_API_AUTH_STRING") as caught:
            connect.require_prefect(address)
        assert "wrong" not in str(caught.value)
        server.shutdown()
