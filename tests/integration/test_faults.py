"""Every part of the system killed in mid-sweep: the same command finishes the rest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

import modcap
from modcap.infra import local
from modcap.tasks.storage import s3 as connections
from modcap.tasks.storage.store import Store
from tests.integration.commands import alone, modcap_process, start, sweep_arguments

pytestmark = pytest.mark.fault

RECIPE: dict[str, Any] = {
    "calibration": 48,
    "optimiser": {"iterations": 25, "batch_size": 16},
    "homogeneity": "any",
    "w_bits": 2,
    "a_bits": 4,
}
ENOUGH = 16  # results in the store that make it mid-sweep: of some 35


@pytest.fixture(scope="module")
def fault_home() -> Iterator[Path]:
    """A stack of its own, whose parts may die."""
    folder = Path(tempfile.mkdtemp(prefix="modcap-fault-"))
    local.up(folder)
    yield folder
    local.down(folder)
    shutil.rmtree(folder, ignore_errors=True)


class Faulty:
    """A sweep that is disturbed once, and started again."""

    def __init__(self, home: Path, folder: Path, seed: int) -> None:
        self.home, self.seed = home, seed
        self.environment = {"MODCAP_HOME": str(home), "MODCAP_PREFIX": f"fault-{seed}"}
        self.arguments = sweep_arguments(folder, RECIPE, "--k", "0,1", "--seeds", str(seed))
        exports = local.up(home).environment()
        self.exports = exports
        self.store = Store(
            exports["MODCAP_BUCKET"], f"fault-{seed}", exports["AWS_ENDPOINT_URL_S3"]
        )

    def pid(self, name: str) -> int:
        (found,) = [s.pid for s in local.status(self.home) if s.name == name]
        assert found
        return found

    def children(self, name: str, part: str) -> list[psutil.Process]:
        """Processes below a service whose command line holds ``part``."""
        found = []
        for process in psutil.Process(self.pid(name)).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def working(self) -> list[psutil.Process]:
        """Ray workers that reconstruct at this moment."""
        return self.children("ray", "ray::qdrop")

    def start_and_wait(self) -> subprocess.Popen[str]:
        """The sweep, some of whose jobs are done, at work on another."""
        process = start(self.environment, *self.arguments)
        limit = time.monotonic() + 120
        while len(set(self.store.keys())) < ENOUGH or not self.working():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.2)
        return process

    def finish(self) -> None:
        """The same command again; then everything is there, once, as if nothing had happened."""
        done = modcap_process(self.environment, *self.arguments)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["jobs"]["reused"] >= ENOUGH
        for cell in report["cells"][1:]:
            recipe = modcap.Recipe.model_validate(cell["recipe"])
            assert cell["artifact_digest"] == hashlib.sha256(alone(recipe)).hexdigest()
        client = MlflowClient(self.exports["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("modcap")
        assert experiment is not None
        nested = client.search_runs(
            [experiment.experiment_id],
            f"tags.`mlflow.parentRunId` = '{report['mlflow_run_id']}'",
        )
        assert len(nested) == 2
        assert {run.info.status for run in nested} == {"FINISHED"}
        versions = client.search_model_versions("name like 'resnet18_narrow-w%'")
        keys = [version.tags["modcap.publish_key"] for version in versions]
        assert len(keys) == len(set(keys))


@pytest.fixture
def faulty(
    fault_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Faulty]:
    for name in [n for n in os.environ if n.startswith(("AWS_", "MLFLOW_", "PREFECT_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODCAP_HOME", str(fault_home))
    seed = int(hashlib.sha256(request.node.name.encode()).hexdigest()[:4], 16)
    made = Faulty(fault_home, tmp_path, seed)
    with monkeypatch.context() as inside:
        for name, value in made.exports.items():
            if name.startswith("AWS_") or name == "MODCAP_BUCKET":
                inside.setenv(name, value)
            elif name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
                monkeypatch.setenv(name, value)
        connections._client.cache_clear()
        for_reading = connections.client(
            made.exports["AWS_ENDPOINT_URL_S3"]
        )  # has its credentials now
        assert for_reading is not None
    yield made
    connections._client.cache_clear()


def test_a_killed_worker_costs_one_try(faulty: Faulty) -> None:
    process = faulty.start_and_wait()
    (worker, *_) = faulty.working()
    worker.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out)["jobs"]["executed"] > ENOUGH
    faulty.finish()


def kill_raylet(faulty: Faulty) -> None:
    for raylet in faulty.children("ray", "raylet/raylet"):
        raylet.kill()


def kill_service(name: str) -> Callable[[Faulty], None]:
    def kill(faulty: Faulty) -> None:
        service = psutil.Process(faulty.pid(name))
        for process in [*service.children(recursive=True), service]:
            process.kill()

    return kill


@pytest.mark.parametrize(
    "kill",
    [kill_raylet, kill_service("s3"), kill_service("mlflow")],
    ids=["raylet", "s3", "mlflow"],
)
def test_a_killed_server_ends_the_run_and_the_next_goes_on(
    faulty: Faulty, kill: Callable[[Faulty], None]
) -> None:
    process = faulty.start_and_wait()
    kill(faulty)
    _, err = process.communicate(timeout=200)
    assert process.returncode in (1, 2), err
    assert err.splitlines()[-1].startswith("modcap: ")
    faulty.finish()


def test_a_killed_driver_leaves_what_it_finished(faulty: Faulty) -> None:
    process = faulty.start_and_wait()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    faulty.finish()


def test_a_full_disk_ends_the_run_and_the_next_goes_on(faulty: Faulty) -> None:
    """The server may not extend any file: what a full disk says (EFBIG instead of ENOSPC)."""
    process = faulty.start_and_wait()
    server = psutil.Process(faulty.pid("s3"))
    server.rlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        _, err = process.communicate(timeout=200)
    finally:
        server.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert process.returncode in (1, 2), err
    assert err.splitlines()[-1].startswith("modcap: ")
    faulty.finish()


def set_state(faulty: Faulty, kind: str) -> None:
    """What a click in Prefect's page does to the sweep that runs."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import State

    login = faulty.exports["PREFECT_API_AUTH_STRING"]
    with SyncPrefectClient(faulty.exports["PREFECT_API_URL"], auth_string=login) as client:
        running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PAUSED"]}}})
        newest = max(
            client.read_flow_runs(flow_run_filter=running), key=lambda run: run.start_time or 0
        )
        state = State.model_validate({"type": kind, "name": kind.title()})
        client.set_flow_run_state(newest.id, state, force=kind == "RUNNING")


def test_cancelling_in_prefect_stops_the_work_in_seconds(faulty: Faulty) -> None:
    process = faulty.start_and_wait()
    set_state(faulty, "CANCELLING")
    start_time = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start_time < 20
    assert process.returncode == 1
    assert "cancelled" in err.splitlines()[-1]
    assert not faulty.working()
    faulty.finish()


def test_pausing_in_prefect_stops_the_work_until_resumed(faulty: Faulty) -> None:
    process = faulty.start_and_wait()
    set_state(faulty, "PAUSED")
    limit = time.monotonic() + 15
    while faulty.working():
        assert time.monotonic() < limit
        time.sleep(0.2)
    stored = len(set(faulty.store.keys()))
    time.sleep(3)
    assert len(set(faulty.store.keys())) == stored
    assert process.poll() is None
    set_state(faulty, "RUNNING")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(json.loads(out)["cells"]) == 2


def stack_down(faulty: Faulty) -> None:
    local.down(faulty.home)


@pytest.mark.parametrize("kill", [kill_service("prefect"), stack_down], ids=["prefect", "down"])
def test_the_loss_of_prefect_ends_the_run_with_one_line(
    faulty: Faulty, kill: Callable[[Faulty], None]
) -> None:
    faulty.environment["MODCAP_PATIENCE"] = "3"
    process = faulty.start_and_wait()
    start_time = time.monotonic()
    kill(faulty)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert time.monotonic() - start_time < 30
    assert_one_line(err)
    faulty.finish()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_the_run_with_one_line_and_its_work(
    faulty: Faulty, number: signal.Signals, code: int
) -> None:
    process = faulty.start_and_wait()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert_one_line(err)
    limit = time.monotonic() + 5
    while faulty.working():
        assert time.monotonic() < limit
        time.sleep(0.2)
    faulty.finish()


def assert_one_line(err: str) -> None:
    """One line of ours at the end; before it, what a run says, and nothing else."""
    *before, last = err.splitlines()
    assert last.startswith("modcap: ")
    assert "start the same command again" in last
    known = re.compile(r"\d+ jobs planned|\[\d+/\d+\] |  .*: step \d+/|starting |MLflow|.* lost")
    assert [line for line in before if not known.match(line)] == []
