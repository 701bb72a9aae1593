"""Leases and the store, as any order of what processes do to them leaves them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from modcap.core.errors import ModcapError
from modcap.core.serialization import Result
from modcap.tasks.storage import lease as module
from modcap.tasks.storage.lease import Lease, give_all_back, lease
from modcap.tasks.storage.store import Store

FEW = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


class Clock:
    """Stands in the place of this machine's clocks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.today = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.today

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_no_clock_of_a_holder_counts(store: Store, clock: Clock) -> None:
    """The holder's wall clock is years behind: another one takes nothing from it that is alive."""
    mine, other = (Lease(store, "leases/skew.json") for _ in range(2))
    assert mine.take()
    clock.today = 1e9
    for _ in range(5):
        assert not other.take()
        clock.now += module._TERM * 0.9
        assert mine._hold_on()
    mine.check()


def test_a_dead_holder_is_taken_over_after_a_term_that_was_watched(
    store: Store, clock: Clock
) -> None:
    mine, other = (Lease(store, "leases/dead.json") for _ in range(2))
    assert mine.take()
    clock.now += 10 * module._TERM  # nobody watched
    assert not other.take()
    clock.now += module._TERM + 1
    assert other.take()
    with pytest.raises(ModcapError, match="lost to another process"):
        mine.check()
    mine.give_back()  # which leaves the other one's
    other.check()


def test_whoever_waits_for_a_silent_holder_says_so_once(store: Store, clock: Clock) -> None:
    assert Lease(store, "leases/silent.json").take()
    said: list[str] = []
    with lease(store, "silent", say=said.append) as mine:
        assert mine is not None
    (line,) = said
    assert "another process holds silent" in line
    assert "50 s at most" in line


def test_what_ends_at_once_gives_its_leases_back(store: Store) -> None:
    with lease(store, "ending"):
        give_all_back()
        assert Lease(store, "leases/ending.json").take()


def test_giving_back_never_frees_what_was_taken_over_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes it over between any two requests of the one who gives it back."""
    mine = Lease(store, "leases/between.json")
    assert mine.take()
    delete = Store.delete_document

    def late(self: Store, name: str, **condition: str) -> None:
        held = self.get_document(name)
        assert held is not None
        assert self.put_document(name, b'{"token": "another"}', only_if=held[1])
        delete(self, name, **condition)

    monkeypatch.setattr(Store, "delete_document", late)
    mine.give_back()
    held = store.get_document("leases/between.json")
    assert held is not None
    assert held[0] == b'{"token": "another"}'


def test_who_cannot_wait_is_told_that_the_holder_lives(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BEAT", 0.2)
    with lease(store, "busy") as mine:
        assert mine is not None
        start = time.monotonic()
        with lease(store, "busy") as other:
            assert other is None
        assert time.monotonic() - start < 10


def test_a_dead_one_is_waited_for_without_any_patience(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TERM", 1.0)
    assert Lease(store, "leases/killed.json").take()
    with lease(store, "killed") as mine:
        assert mine is not None
        mine.check()


def test_one_at_a_time_of_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT", 0.01)
    inside, most, turns = [], [], []

    def work() -> None:
        with lease(store, "many", patience=60) as mine:
            assert mine is not None
            inside.append(1)
            most.append(len(inside))
            mine.check()
            time.sleep(0.02)
            inside.pop()
            turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(turns)) == (1, 6)


def machine_of(store: Store, clock: Clock) -> Callable[[], RuleBasedStateMachine]:
    class Leases(RuleBasedStateMachine):
        """Three processes, any of which may stand still, lose an answer, or wake up late."""

        def __init__(self) -> None:
            super().__init__()
            self.name = f"leases/{secrets.token_hex(8)}.json"
            self.processes = [Lease(store, self.name) for _ in range(3)]
            self.holders: set[int] = set()  # who was told that it holds it, as of its last call

        who = st.integers(0, 2)

        @rule(who=who)
        def take(self, who: int) -> None:
            if who not in self.holders and self.processes[who].take():
                self.holders = {who}

        @rule(who=who)
        def check(self, who: int) -> None:
            try:
                self.processes[who].check()
            except ModcapError:
                assert who not in self.holders
            else:
                assert self.holders == {who}

        @rule(who=who)
        def give_back(self, who: int) -> None:
            self.processes[who].give_back()
            self.holders -= {who}

        @rule(who=who)
        def die(self, who: int) -> None:
            """It gives nothing back; another process is started in its place."""
            self.processes[who] = Lease(store, self.name)
            self.holders -= {who}

        @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
        def wait(self, seconds: float) -> None:
            clock.now += seconds

        @rule(who=who)
        def lose_an_answer(self, who: int) -> None:
            """It renewed the lease, and does not know it."""
            process = self.processes[who]
            version = process._version
            process._hold_on()
            process._version = version

        @invariant()
        def held_by_at_most_one(self) -> None:
            assert len(self.holders) <= 1

    return Leases


def test_leases_in_any_order(store: Store, clock: Clock) -> None:
    run_state_machine_as_test(machine_of(store, clock), settings=FEW)


def results_of(store: Store) -> Callable[[], RuleBasedStateMachine]:
    class Results(RuleBasedStateMachine):
        """Workers that compute the same jobs, in a store whose objects come to harm."""

        def __init__(self) -> None:
            super().__init__()
            self.store = Store(store.bucket, f"machine/{secrets.token_hex(8)}", store.endpoint)
            self.first: dict[str, int] = {}  # key -> the writer whose result holds

        key = st.sampled_from(["a", "b"])
        writer = st.integers(0, 2)

        @rule(key=key, writer=writer)
        def settle(self, key: str, writer: int) -> None:
            mine = Result({"x": torch.tensor([writer])}, {"writer": writer})
            result = self.store.settle(key, mine)
            self.first.setdefault(key, writer)
            assert result.meta == {"writer": self.first[key]}
            assert result.tensors["x"].tolist() == [self.first[key]]

        @rule(key=key)
        def get(self, key: str) -> None:
            result = self.store.get(key)
            assert (result and result.meta) == (
                {"writer": self.first[key]} if key in self.first else None
            )

        @rule(key=key, what=st.sampled_from([b"", b"{}", b"[[", b"\xff", None]), part=st.booleans())
        def harm(self, key: str, what: bytes | None, part: bool) -> None:
            for entry in list(self.store.entries("jobs")):
                if entry.key == key and entry.name.endswith(".json") == part:
                    if "damaged" in entry.name:
                        continue
                    if what is None:
                        self.store.delete_document(entry.name)
                    else:
                        self.store.put_document(entry.name, what)
                    self.first.pop(key, None)

        @rule(key=key)
        def collect(self, key: str) -> None:
            """As garbage: with all that was set aside of it."""
            self.store.remove([e for e in self.store.entries("jobs") if e.key == key])
            self.first.pop(key, None)

        @rule()
        def verify(self) -> None:
            damaged = {name.split("/")[1] for name, _ in self.store.verify()}
            assert not damaged & self.first.keys()

        @invariant()
        def done_is_what_is_there(self) -> None:
            assert set(self.first) <= self.store.done(["a", "b"])

    return Results


@pytest.mark.filterwarnings("ignore:result of job")
def test_results_in_any_order(store: Store) -> None:
    run_state_machine_as_test(results_of(store), settings=FEW)
