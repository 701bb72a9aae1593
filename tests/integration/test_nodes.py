"""A cluster of several nodes that share nothing but S3: one comes in mid-run, and one goes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import modcap
from tests.integration.commands import ROOT, alone, modcap_process, start, sweep_arguments

WAVE: dict[str, Any] = {  # some thirty jobs that do not wait for each other
    "calibration": 32,
    "optimiser": {"iterations": 400, "batch_size": 8},
    "schedule": "waves",
    "a_bits": 4,
    "k": 0,
}
LOST = re.compile(r"^(.*): its worker was lost, started again (\d+) time", re.MULTILINE)


class Node:
    """One more Ray node with one CPU: a process in a working folder of its own."""

    def __init__(self, stack: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="modcap-node-"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modcap.infra.local.node", "--folder", str(self.folder)],
            cwd=self.folder,
            env=os.environ | stack | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Those of the node whose title holds ``part``."""
        found = []
        with suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if part in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def wait_for_work(self, run: subprocess.Popen[str]) -> psutil.Process:
        """The worker that reconstructs on this node."""
        limit = time.monotonic() + 60
        while not (working := self.processes("ray::qdrop")):
            assert run.poll() is None, run.communicate()
            assert time.monotonic() < limit, "the node got no work"
            time.sleep(0.05)
        return working[0]

    def lose(self, run: subprocess.Popen[str]) -> str:
        """The node goes as a spot instance does, without a word; returns the job that it held."""
        worker = self.wait_for_work(run)
        worker.suspend()  # it cannot finish between the look at its title and the kill
        title = worker.cmdline()[0]
        (raylet,) = [p for p in self.processes("raylet") if p.name() == "raylet"]
        raylet.kill()
        worker.kill()
        return title.removeprefix("ray::")

    def stop(self) -> None:
        for process in [*self.processes(), psutil.Process(self.process.pid)]:
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def node(stack: dict[str, str]) -> Iterator[Node]:
    made = Node(stack)
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def running(environment: dict[str, str], arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A sweep; it does not outlive the test."""
    with start(environment, *arguments) as run:
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.fault
def test_a_node_comes_and_one_goes_in_mid_run(stack: dict[str, str], tmp_path: Path) -> None:
    environment = stack | {"MODCAP_PREFIX": f"nodes-{tmp_path.name}"}
    arguments = sweep_arguments(tmp_path, WAVE, "--w-bits", "2,4", "--seeds", "7")
    with node(stack) as leaver, running(environment, arguments) as run:
        leaver.wait_for_work(run)
        with node(stack) as joiner:
            held = leaver.lose(run)
            joiner.wait_for_work(run)
            kept = joiner.folder / f"modcap-{os.getuid()}/inputs"
            out, err = run.communicate(timeout=240)
            assert list(kept.iterdir())  # the joiner read its inputs from S3 into its own folder
    assert run.returncode == 0, err
    report = json.loads(out)
    assert LOST.findall(err) == [(held, "1")]  # the lost node cost the job that it held
    cell = report["cells"][1]
    recipe = modcap.Recipe.model_validate(cell["recipe"])
    assert cell["artifact_digest"] == hashlib.sha256(alone(recipe)).hexdigest()
    again = modcap_process(environment, *arguments)
    assert json.loads(again.stdout)["jobs"]["executed"] == 0
