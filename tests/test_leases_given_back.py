"""A lease is free again, whenever the signal that ends its process comes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from modcap.tasks.storage import lease as leases
from modcap.tasks.storage.lease import give_all_back, lease
from modcap.tasks.storage.store import Store


class Memory(Store):
    """A store in this process; ``hook`` is called after an object was written."""

    objects: dict[str, tuple[bytes, str]]
    hook: Callable[[], None]

    def __init__(self, hook: Callable[[], None] = lambda: None) -> None:
        super().__init__("bucket")
        versions = map(str, itertools.count())
        for name, value in {"objects": {}, "hook": hook, "versions": versions}.items():
            object.__setattr__(self, name, value)

    def put_document(self, name: str, data: bytes, **condition: Any) -> str | None:
        held = self.objects.get(name)
        if held is not None and condition.get("only_if") != held[1]:
            return None
        version: str = next(self.versions)  # type: ignore[attr-defined]
        self.objects[name] = data, version
        self.hook()
        return version

    def get_document(self, name: str) -> tuple[bytes, str] | None:
        return self.objects.get(name)

    def delete_document(self, name: str, *, only_if: str | None = None) -> None:
        if self.objects[name][1] == only_if:
            del self.objects[name]


class Signal(BaseException):
    pass


def test_a_signal_between_a_write_and_its_answer() -> None:
    def come() -> None:
        raise Signal

    store = Memory(come)
    with pytest.raises(Signal), lease(store, "prefix"):
        pass
    assert store.objects == {}
    assert leases._held == []


def test_an_end_of_the_process_while_the_lease_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the process runs beside the thread that it stopped, which holds the lock."""
    monkeypatch.setattr(leases, "_LOCK", 0.05)
    ended: list[bool] = []

    def come() -> None:
        store.__dict__["hook"] = lambda: None
        ender = threading.Thread(target=give_all_back)
        ender.start()
        ender.join(5)
        ended.append(store.objects == {})

    store = Memory(come)
    with lease(store, "prefix"):
        pass
    assert ended == [True]


def test_the_lease_of_another_process_stays() -> None:
    store = Memory()
    with lease(store, "prefix") as mine:
        assert mine is not None
        store.objects[mine.name] = b'{"token": "another"}', "9"
    assert store.objects[mine.name][1] == "9"
