"""The embedded stack: loopback only, private credentials, reused, and gone after ``down``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.infra import local
from modcap.tasks.storage.store import Store
from tests.integration.commands import modcap_command


def members(home: Path) -> list[psutil.Process]:
    """Every process of the stack's sessions."""
    processes = json.loads((home / "stack.json").read_text())["processes"]
    leaders = {known["pid"] for known in processes.values()}
    return [process for process in psutil.process_iter() if session(process) in leaders]


def session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:  # it ended meanwhile
        return -1


def test_everything_listens_on_loopback_only(stack: dict[str, str], home: Path) -> None:
    listening = [
        connection.laddr.ip
        for process in members(home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 8
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}


def test_credentials_are_private_and_on_no_command_line(stack: dict[str, str], home: Path) -> None:
    for name in ("credentials.json", "s3-identities.json", "ray-token"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    secrets = json.loads((home / "credentials.json").read_text()).values()
    for process in members(home):
        line = " ".join(process.cmdline())
        assert not any(secret in line for secret in secrets)


def test_what_runs_is_reused(stack: dict[str, str], home: Path) -> None:
    before = [status.pid for status in local.status(home)]
    assert all(before)
    assert local.up(home).environment() == stack
    assert [status.pid for status in local.status(home)] == before


def test_configured_services_are_not_started(
    stack: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    states = {status.name: status for status in local.status(home)}
    assert (states["mlflow"].state, states["mlflow"].address) == (
        "configured",
        "http://mlflow.example:5000",
    )
    assert "MLFLOW_TRACKING_URI" not in local.up(home).exports


@pytest.fixture
def own_home(home: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="modcap-own-"))
    yield folder
    local.down(folder)
    shutil.rmtree(folder, ignore_errors=True)


def own_store(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Store(environment["MODCAP_BUCKET"], "own", environment["AWS_ENDPOINT_URL_S3"])


def test_two_at_once_start_one_set_and_killed_servers_keep_data(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import modcap.tasks.storage.s3 as module

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: local.up(own_home, ["s3"]).environment(), range(2)))
    assert both[0] == both[1]
    module._client.cache_clear()
    store = own_store(both[0], monkeypatch)
    store.put("kept", Result(meta={"a": 1}))
    (server,) = [s for s in local.status(own_home) if s.name == "s3"]
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    time.sleep(0.5)
    for name in both[0]:
        monkeypatch.delenv(name)
    again = local.up(own_home, ["s3"]).environment()
    assert again == both[0]
    own_store(again, monkeypatch)
    found = store.get("kept")
    assert found is not None
    assert found.meta == {"a": 1}
    module._client.cache_clear()


def test_what_an_interrupted_start_left_is_waited_for(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.up(own_home, ["s3"])
    state = json.loads((own_home / "stack.json").read_text())
    server = state["processes"]["s3"]
    assert server["ready"]
    os.kill(server["pid"], signal.SIGSTOP)  # it lives, and does not answer
    del server["ready"]
    (own_home / "stack.json").write_text(json.dumps(state))
    monkeypatch.setattr(local, "_START_SECONDS", 3)
    with pytest.raises(ModcapError, match="s3"):
        local.up(own_home, ["s3"])
    assert not psutil.pid_exists(server["pid"])


def test_down_leaves_no_process(own_home: Path) -> None:
    local.up(own_home, ["s3"])
    running = members(own_home)
    assert running
    start = time.monotonic()
    assert local.down(own_home) == ["s3"]
    assert time.monotonic() - start < 10
    assert not [p for p in running if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert {s.state for s in local.status(own_home)} == {"stopped"}
    assert local.down(own_home) == []


def test_down_kills_no_stranger_that_has_the_number(own_home: Path) -> None:
    """A pid file that names a session of somebody else's, started at the same moment."""
    local.status(own_home)
    stranger = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    try:
        created = psutil.Process(stranger.pid).create_time()
        known = {"pid": stranger.pid, "created": created, "mark": "another", "as": ""}
        state = {"ports": {}, "processes": {"s3": known, "ray": {**known, "created": 0.0}}}
        (own_home / "stack.json").write_text(json.dumps(state))
        assert local.down(own_home) == []
        assert stranger.poll() is None
        leaderless = psutil.Process(stranger.pid).children()
        stranger.kill()
        stranger.wait()
        (own_home / "stack.json").write_text(json.dumps(state))
        assert local.down(own_home) == []
        assert all(child.is_running() for child in leaderless)
    finally:
        for process in psutil.process_iter():
            if session(process) == stranger.pid:
                process.kill()
        stranger.wait()


def test_who_uses_s3_is_started_again_when_it_moves(own_home: Path) -> None:
    before = local.up(own_home, ["s3", "mlflow"]).exports
    pids = {s.name: s.pid for s in local.status(own_home)}
    assert pids["s3"]
    os.kill(pids["s3"], signal.SIGKILL)
    host, _, port = before["AWS_ENDPOINT_URL_S3"].removeprefix("http://").partition(":")
    time.sleep(1)
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with taken:
        taken.bind((host, int(port)))
        taken.listen()
        after = local.up(own_home, ["s3", "mlflow"]).exports
    assert after["AWS_ENDPOINT_URL_S3"] != before["AWS_ENDPOINT_URL_S3"]
    now = {s.name: s.pid for s in local.status(own_home)}
    assert now["mlflow"]
    assert now["mlflow"] != pids["mlflow"]
    server = psutil.Process(now["mlflow"])
    assert server.environ()["MLFLOW_S3_ENDPOINT_URL"] == after["AWS_ENDPOINT_URL_S3"]


def test_a_home_with_spaces_and_other_letters_works(own_home: Path) -> None:
    home = own_home / "ein Ort für ∂ten"
    try:
        assert set(local.up(home).exports) >= {"RAY_ADDRESS", "PREFECT_API_URL"}
        assert {s.state for s in local.status(home)} == {"running"}
    finally:
        local.down(home)


def test_doctor_finds_nothing_wrong_with_what_runs(stack: dict[str, str]) -> None:
    done = modcap_command(stack, "doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    found = {each["check"]: each for each in report["findings"]}
    assert "takes, gives, lists and deletes" in found["S3"]["said"]
    assert found["clock"]["state"] == "ok"
    assert {found[name]["state"] for name in ("S3", "MLflow", "Prefect", "Ray")} == {"ok"}
    assert stack["AWS_SECRET_ACCESS_KEY"] not in done.stdout
