"""``modcap doctor`` finds what is wrong and says how to mend it."""

from __future__ import annotations

import json
import socket
from collections import namedtuple
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from importlib import metadata
from typing import Any

import psutil
import pytest

from modcap.flows import cli
from modcap.flows.cli import machine_checks, service_checks
from modcap.flows.cli.machine_checks import Finding
from modcap.tasks.storage.store import Store

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "available")


def found(name: str) -> Finding:
    return next(each for each in machine_checks.machine_checks() if each.check == name)


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("packages").state == "ok"
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "0.1" if n == "prefect" else real(n))
    wrong = found("packages")
    assert wrong.state == "problem"
    assert "prefect is 0.1, not " in wrong.said
    assert "pip install" in wrong.mend


def test_memory_and_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(2**30))
    assert found("memory").state == "warning"
    for gigabytes, state in ((0.5, "problem"), (3, "warning")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, g=gigabytes: Usage(0, 0, g * 2**30))
        assert found("disk, temporary files").state == state
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 2**40))
    monkeypatch.setattr(machine_checks, "_file_system", lambda _: "tmpfs")
    memory = found("disk, temporary files")
    assert (memory.state, memory.mend) == ("warning", "name one on a disk by TMPDIR")


def test_services_that_do_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://{nobody}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "hidden",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MODCAP_BUCKET": "bucket",
            "MODCAP_PATIENCE": "0.1",
            "MLFLOW_TRACKING_URI": f"http://user:hidden@{nobody}",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "PREFECT_API_URL": f"http://user:hidden@{nobody}/api",
            "RAY_ADDRESS": nobody,
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", "--json"])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    report: dict[str, Any] = json.loads(printed.out)
    wrong = {each["check"]: each for each in report["findings"] if each["state"] == "problem"}
    assert {"S3", "MLflow", "Prefect", "Ray"} <= set(wrong)
    assert report["problems"] == len(wrong)
    for each in wrong.values():
        assert nobody in each["said"]
        assert each["mend"]
    assert "hidden" not in printed.out + printed.err


class Fake(Store):
    """A server that does not know conditional writes."""

    def put_document(self, *_: Any, **__: Any) -> str:
        return "version"

    def delete_document(self, *_: Any, **__: Any) -> None:
        pass


def test_a_server_that_does_not_know_conditional_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "from_environment", lambda: Fake("bucket"))
    answer = service_checks._s3()
    assert isinstance(answer, Finding)
    assert "overwrote" in answer.said
    assert "If-None-Match" in answer.mend


@pytest.mark.parametrize(("off", "state"), [(3, "ok"), (120, "warning"), (2000, "problem")])
def test_the_clock(off: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = datetime.now(timezone.utc) - timedelta(seconds=off)
    monkeypatch.setattr(service_checks, "_date_of", lambda _: format_datetime(theirs, usegmt=True))
    assert service_checks._clock().state == state
