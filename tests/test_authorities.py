"""TLS with an authority of one's own: trusted by the usual variables, else one line says how."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from modcap.core.authorities import check_authorities, trusting
from modcap.core.errors import InputError, Unavailable
from modcap.flows.execution.connect import require_prefect
from modcap.flows.registry import mlflow_runs
from modcap.infra.local.certificates import certificates
from modcap.tasks.storage import s3 as connections
from modcap.tasks.storage.store import Store

VARIABLES = (
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "PREFECT_API_SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
)


class _Yes(http.server.BaseHTTPRequestHandler):
    """Answers everything, as a server that lets everybody in."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Server(NamedTuple):
    address: str
    authority: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    files = certificates(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert"], files["key"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Yes) as found:
        found.socket = context.wrap_socket(found.socket, server_side=True)
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield Server(f"https://127.0.0.1:{found.server_port}", files["ca"])
        found.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "driver")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    connections._client.cache_clear()
    yield
    connections._client.cache_clear()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_s3_is_reached_by_its_variables(
    server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(server.authority))
    Store("modcap", "", server.address).ensure_bucket()


def test_s3_of_an_unknown_authority_is_one_line_at_once(server: Server) -> None:
    with pytest.raises(Unavailable, match="authority in AWS_CA_BUNDLE") as caught:
        Store("modcap", "", server.address).ensure_bucket()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"])
def test_prefect_is_reached_by_its_variables(
    server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(server.authority))
    require_prefect(f"{server.address}/api")


def test_prefect_of_an_unknown_authority_is_one_line(server: Server) -> None:
    with pytest.raises(Unavailable, match="authority in PREFECT_API_SSL_CERT_FILE") as caught:
        require_prefect(f"{server.address}/api")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"])
def test_mlflow_is_reached_by_its_variables(
    server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv(variable, str(server.authority))
    with mlflow_runs.reaching() as client:
        assert list(client.search_experiments()) == []


def test_mlflow_of_an_unknown_authority_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = "authority in MLFLOW_TRACKING_SERVER_CERT_PATH"
    with (
        pytest.raises(Unavailable, match=said) as caught,
        mlflow_runs.reaching() as client,
    ):
        client.search_experiments()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, content: str | None
) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    with pytest.raises(InputError, match=f"{variable}=") as caught:
        check_authorities()
    assert "\n" not in str(caught.value)


def test_a_folder_of_authorities_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path))
    check_authorities()
    assert trusting("S3").verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("endpoint", "settings", "address"),
    [
        (None, "", "https://results.s3.eu-central-1.amazonaws.com/k"),
        ("http://minio:9000", "", "http://minio:9000/results/k"),
        ("http://minio:9000", "s3 =\n  addressing_style = virtual", "http://results.minio:9000/k"),
        (
            None,
            "s3 =\n  addressing_style = path",
            "https://s3.eu-central-1.amazonaws.com/results/k",
        ),
    ],
)
def test_buckets_are_addressed_as_aws_and_minio_want_and_the_users_settings_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    settings: str,
    address: str,
) -> None:
    """The request's address, as it would be sent."""
    (tmp_path / "config").write_text(f"[default]\nregion = eu-central-1\n{settings}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    s3 = connections.client(endpoint)
    asked = []

    def stop(request: object, **_: object) -> None:
        asked.append(request.url)  # type: ignore[attr-defined]
        raise InterruptedError

    s3.meta.events.register("before-send.s3.GetObject", stop)
    with pytest.raises(InterruptedError):
        s3.get_object(Bucket="results", Key="k")
    assert asked == [address]
