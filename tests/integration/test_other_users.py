"""Another user of the machine can neither read, write nor start anything of a running stack.

Where this process may become another user, it does; elsewhere it asks without credentials. The
questions are asked with the standard library alone: another user may not have ours.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from modcap.core.errors import InputError
from modcap.infra import local
from tests.integration.test_stack import members

USER = "modcap-stranger"
ASK = """
import json, ssl, socket, sys, urllib.error, urllib.request

def plain(port):
    link = socket.create_connection(("127.0.0.1", port), 5)
    link.settimeout(5)
    return link

def secure(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain(port))

def bytes_of(open_, port, text):
    try:
        link = open_(port)
        link.sendall(text.encode())
        return link.recv(200).decode("latin1")
    except OSError as error:
        return type(error).__name__

def status(method, url, body):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    try:
        asked = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code

def opened(path):
    try:
        open(path, "rb").read()
        return "read"
    except OSError as error:
        return type(error).__name__

def connected(path):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        return "connected"
    except OSError as error:
        return type(error).__name__

asked = json.load(sys.stdin)
print(json.dumps({
    "status": [status(*one) for one in asked.get("status", [])],
    "plain": [bytes_of(plain, *one) for one in asked.get("plain", [])],
    "secure": [bytes_of(secure, *one) for one in asked.get("secure", [])],
    "opened": [opened(one) for one in asked.get("opened", [])],
    "connected": [connected(one) for one in asked.get("connected", [])],
}))
"""


class Stranger:
    """Somebody else: another user where that can be, else nobody with credentials."""

    def __init__(self) -> None:
        self.other = os.getuid() == 0 and shutil.which("useradd") is not None
        if self.other:
            subprocess.run(["useradd", "--no-create-home", USER], check=False)

    def ask(self, **questions: list[Any]) -> dict[str, list[Any]]:
        system = next(p for p in ("/usr/bin/python3", sys.executable) if Path(p).exists())
        who: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []}
        done = subprocess.run(
            [system if self.other else sys.executable, "-c", ASK],
            input=json.dumps(questions),
            env={"PATH": os.defpath},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
            **(who if self.other else {}),
        )
        answer: dict[str, list[Any]] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="module")
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    yield made
    if made.other:
        subprocess.run(["userdel", USER], check=False)


def ports(home: Path, service: str) -> list[int]:
    """Where the processes of a service listen."""
    pid = json.loads((home / "stack.json").read_text())["processes"][service]["pid"]
    return sorted(
        {
            connection.laddr.port
            for process in members(home)
            if os.getsid(process.pid) == pid
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    )


def test_prefect_shows_and_starts_nothing(stack: dict[str, str], stranger: Stranger) -> None:
    api = stack["PREFECT_API_URL"]
    asked = [
        ("POST", f"{api}/flows/filter", {}),
        ("POST", f"{api}/flow_runs/filter", {}),
        ("POST", f"{api}/deployments/filter", {}),
        ("POST", f"{api}/work_pools/filter", {}),
        ("POST", f"{api}/work_pools/", {"name": "theirs", "type": "process"}),
        ("POST", f"{api}/flows/", {"name": "theirs"}),
        ("GET", f"{api}/admin/settings", None),
        ("POST", f"{api}/admin/database/clear", {"confirm": True}),
    ]
    assert stranger.ask(status=asked)["status"] == [401] * len(asked)


def test_mlflow_shows_and_changes_nothing(stack: dict[str, str], stranger: Stranger) -> None:
    at = stack["MLFLOW_TRACKING_URI"]
    api = f"{at}/api/2.0/mlflow"
    alias = {"name": "any", "alias": "production", "version": "1"}
    asked = [
        ("POST", f"{api}/experiments/search", {"max_results": 5}),
        ("POST", f"{api}/experiments/create", {"name": "theirs"}),
        ("POST", f"{api}/runs/search", {"experiment_ids": ["0"]}),
        ("POST", f"{api}/registered-models/alias", alias),
        ("GET", f"{at}/api/2.0/mlflow-artifacts/artifacts?path=", None),
        ("PUT", f"{at}/api/2.0/mlflow-artifacts/artifacts/theirs", {}),
        ("POST", f"{api}/users/create", {"username": "theirs", "password": "long-enough-1"}),
        ("GET", f"{at}/ajax-api/2.0/mlflow/experiments/search?max_results=5", None),
        ("POST", f"{at}/graphql", {"query": "{__typename}"}),
        ("POST", f"{at}/v1/traces", {}),
    ]
    found = stranger.ask(status=asked)["status"]
    assert all(code in (401, 403) for code in found), found


def test_every_port_of_s3_asks_for_a_key_or_a_certificate(
    stack: dict[str, str], home: Path, stranger: Stranger
) -> None:
    """Master, volume and filer, HTTP and gRPC; and S3, whose answers name nothing."""
    s3 = stack["AWS_ENDPOINT_URL_S3"]
    asked = [
        ("GET", f"{s3}/", None),
        ("GET", f"{s3}/modcap", None),
        ("GET", f"{s3}/modcap/ready", None),
        ("PUT", f"{s3}/modcap/theirs", {}),
        ("DELETE", f"{s3}/modcap/ready", None),
        ("PUT", f"{s3}/theirs", {}),
    ]
    assert set(stranger.ask(status=asked)["status"]) <= {401, 403}
    others = [port for port in ports(home, "s3") if port != int(s3.rpartition(":")[2])]
    assert len(others) >= 7
    gets = [(p, "GET /dir/assign HTTP/1.1\r\nHost: x\r\n\r\n") for p in others]
    http2 = [(p, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\0\0\0\4\0\0\0\0\0") for p in others]
    found = stranger.ask(secure=[*gets, *http2], plain=[*gets, *http2])
    assert set(found["secure"]) <= {"SSLError", ""}, found
    refused = (
        "",
        "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    )
    assert {*found["plain"]} <= {*refused, "ConnectionResetError"}, found


def test_ray_answers_nobody_without_its_token(
    stack: dict[str, str], home: Path, stranger: Stranger
) -> None:
    """Over HTTP every port of Ray says 401, or speaks gRPC alone, which the next test asks."""
    listening = ports(home, "ray")
    assert len(listening) >= 6
    get = "GET /api/jobs/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answers = stranger.ask(plain=[(port, get) for port in listening])["plain"]
    spoken = [answer for answer in answers if answer.startswith("HTTP")]
    assert spoken
    assert all("401" in answer.splitlines()[0] for answer in spoken), spoken
    frames = [answer for answer in answers if not answer.startswith("HTTP")]
    silent = (
        "",
        "ConnectionResetError",
        "TimeoutError",
        "ConnectionRefusedError",
    )
    assert all(answer[3:4] == "\4" or answer in silent for answer in frames), answers


JOIN = """
import logging, ray, sys
logging.getLogger("ray.util.client.worker").setLevel("DEBUG")  # it says there why it tries again
ray.init(sys.argv[1])
print("joined", ray.cluster_resources())
"""
HASTY = {  # whoever is refused is told so at once, and then asks again, several times
    "RAY_py_gcs_connect_timeout_s": "3",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "1",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "1",
}
PATIENT = {"RAY_py_gcs_connect_timeout_s": "60"}


@pytest.mark.parametrize("client", ["", "ray://"])
def test_nobody_joins_ray_without_its_token(
    stack: dict[str, str], home: Path, tmp_path: Path, client: str
) -> None:
    """Neither as a driver nor as a Ray client; the same program joins with the token."""
    known = json.loads((home / "stack.json").read_text())["ports"]
    port = known["ray-ray-client-server-port"] if client else known["ray-port"]
    asked = {
        "nobody": {"RAY_AUTH_MODE": "disabled"},
        "stranger": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs"},
        "owner": {key: stack[key] for key in stack if key.startswith("RAY_AUTH")},
    }

    def ask(who: str) -> str:
        answer = ""
        for patience in (PATIENT if who == "owner" else HASTY, PATIENT):
            done = join(f"{client}127.0.0.1:{port}", tmp_path, asked[who] | patience)
            answer = told(done)
            if answer in ("joined", "refused"):  # else a loaded machine: Ray was not served in time
                break
        return answer

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(ask, asked))
    assert answers == ["refused", "refused", "joined"]


def told(done: subprocess.CompletedProcess[str]) -> str:
    """What Ray answered to who ran JOIN: joined, refused, or the end of what was said instead."""
    if "joined" in done.stdout:
        return "joined"
    if done.returncode and "authentication token" in done.stderr.lower():
        return "refused"
    return done.stderr[-2000:]


def join(address: str, home: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The program JOIN, run by somebody with this home, who knows this much."""
    own = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or it asks at another address
    }
    command = [sys.executable, "-c", JOIN, address]
    return subprocess.run(
        command, env=own | environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_files_and_sockets_are_their_owners_alone(
    stack: dict[str, str], home: Path, stranger: Stranger
) -> None:
    folder = home.resolve()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    credentials = [home / "credentials.json", home / "ray-token", home / "certificates/key.pem"]
    sockets = {
        connection.laddr
        for process in members(home)
        for connection in process.net_connections("unix")
        if str(connection.laddr).startswith("/")
    }
    assert sockets
    outside = [path for path in sockets if folder not in Path(path).resolve().parents]
    for path in outside:
        assert stat.S_IMODE(Path(path).stat().st_mode) & 0o077 == 0, path
    if stranger.other:
        processes = [f"/proc/{process.pid}/environ" for process in members(home)]
        found = stranger.ask(
            opened=[*map(str, credentials), *processes], connected=sorted(map(str, sockets))
        )
        assert {*found["opened"], *found["connected"]} == {"PermissionError"}


def test_a_loose_home_is_tightened_and_a_foreign_one_refused(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    (loose / "logs").mkdir(parents=True)
    (loose / "credentials.json").write_text("{}")
    for path in (loose, loose / "logs", loose / "credentials.json"):
        path.chmod(0o777)
    local.status(loose)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (loose, loose / "logs")]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((loose / "credentials.json").stat().st_mode) & 0o077 == 0
    foreign = Path("/usr") if os.getuid() else tmp_path / "foreign"
    if not os.getuid():
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
    with pytest.raises(InputError, match="belongs to another user"):
        local.status(foreign)
