"""A process for what is not trusted: whatever it does to itself, who asked it hears of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modcap.core.errors import InputError
from modcap.tasks.workers.isolation import Child, Ended, Limits

MODULE = "tests.isolated_worker"


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(MODULE, Limits(memory=1 << 30, seconds=3, file_bytes=1 << 19))
    yield made
    made.close()


def pid(child: Child) -> int:
    return int(child.ask({"do": "pid"})["pid"])


def wait_for(happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end and not happened():
        time.sleep(0.05)
    return happened()


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_one_process_answers_many_requests(child: Child) -> None:
    assert pid(child) == pid(child) != os.getpid()


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        ({"do": "abort"}, "its process was ended by SIGABRT"),
        ({"do": "exit", "value": 3}, "its process ended with 3"),
        ({"do": "exit", "value": 0}, "its process ended with 0"),
        ({"do": "hang"}, "it took longer than 3 s"),
        ({"do": "spin"}, "it took longer than 3 s"),
    ],
)
def test_what_ends_it_is_said_and_the_next_one_is_answered(
    child: Child, request_: dict[str, Any], how: str
) -> None:
    with pytest.raises(Ended) as ended:
        child.ask(request_)
    assert ended.value.how == how
    assert ended.value.doing == {"doing": request_["do"]}
    assert child.ask({"do": "nothing"}) == {"done": True}


def test_memory_is_limited_and_counted_from_the_start_of_each_request(child: Child) -> None:
    assert child.ask({"do": "memory", "value": 2 << 30}) == {"bytes": -1}
    for _ in range(3):
        child.ask({"do": "keep", "value": 400 << 20})
    assert child.ask({"do": "memory", "value": 600 << 20}) == {"bytes": 600 << 20}


def test_files_are_limited(child: Child, tmp_path: Path) -> None:
    with pytest.raises(Ended):
        child.ask({"do": "write", "value": str(tmp_path / "large")})
    assert (tmp_path / "large").stat().st_size <= 1 << 19


def test_a_crash_of_a_used_process_is_tried_once_more_in_a_fresh_one(child: Child) -> None:
    child.ask({"do": "keep", "value": 1})
    before = pid(child)
    assert child.ask({"do": "die when old"}) == {"done": True}
    assert pid(child) != before


def test_what_it_started_ends_with_it(child: Child) -> None:
    first = pid(child)
    with pytest.raises(Ended, match="longer"):
        child.ask({"do": "fork"})
    assert wait_for(lambda: gone(first))
    sessions = subprocess.run(["ps", "-eo", "sess,stat"], capture_output=True, text=True)
    own = [line.split() for line in sessions.stdout.splitlines()[1:]]
    assert not [stat for session, stat in own if session == str(first) and stat[0] != "Z"]


def test_it_ends_with_who_started_it() -> None:
    code = (
        "import time\n"
        "from modcap.tasks.workers.isolation import Child, Limits\n"
        f"child = Child({MODULE!r}, Limits())\n"
        "print(child.ask({'do': 'pid'})['pid'], flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        assert not gone(process)
        parent.send_signal(signal.SIGKILL)
        assert wait_for(lambda: gone(process))


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODCAP_ISOLATED_SECONDS", "7.5")
    monkeypatch.setenv("MODCAP_ISOLATED_GIB", "0.5")
    assert Limits.from_environment() == Limits(memory=1 << 29, seconds=7.5)
    for wrong in ("-1", "nan", "x", "inf"):
        monkeypatch.setenv("MODCAP_ISOLATED_GIB", wrong)
        with pytest.raises(InputError, match="MODCAP_ISOLATED_GIB"):
            Limits.from_environment()
