"""The candidates of a scan, examined by Ray tasks while the driver computes with earlier ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from pydantic import ValidationError

from modcap.core.errors import InputError
from modcap.core.messages import first_line, parse
from modcap.flows.execution.examine import MODULE, Doing, Examined, Task
from modcap.flows.execution.progress import Progress
from modcap.flows.requests.blame import Fault
from modcap.flows.requests.candidate import Candidate
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.isolated import ask_isolated
from modcap.tasks.workers.isolation import Limits

__all__ = ["BATCH", "examined"]

BATCH = 100
"""Candidates that are computed together; as many are examined meanwhile."""
_SAID_SECONDS = 15


def examined(
    candidates: Sequence[Candidate], store: Store, limits: Limits, progress: Progress
) -> Iterator[list[tuple[Candidate, Examined]]]:
    """Batches of candidates with what was found, in order; the next batch is under way already."""
    batches = [candidates[i : i + BATCH] for i in range(0, len(candidates), BATCH)]
    ahead = [_submit(each, store, limits) for each in batches[0]] if batches else []
    for number, batch in enumerate(batches):
        now = ahead
        following = batches[number + 1] if number + 1 < len(batches) else []
        ahead = [_submit(each, store, limits) for each in following]
        _wait(now, number * BATCH, len(candidates), progress)
        yield [(each, _found(reference)) for each, reference in zip(batch, now, strict=True)]


def _submit(candidate: Candidate, store: Store, limits: Limits) -> Any:
    task = Task(
        candidate=candidate, bucket=store.bucket, prefix=store.prefix, endpoint=store.endpoint
    )
    options = {"name": f"examine {candidate.stem}"}
    return ask_isolated.options(**options).remote(MODULE, task.model_dump(mode="json"), limits)


def _wait(references: list[Any], before: int, count: int, progress: Progress) -> None:
    """Until all are there, with a line now and then."""
    said = time.monotonic()
    left = references
    while left:
        _, left = ray.wait(left, num_returns=len(left), timeout=1)
        if time.monotonic() - said > _SAID_SECONDS or not left:
            said = time.monotonic()
            progress.note(f"{before + len(references) - len(left)} of {count} checkpoints examined")


def _found(reference: Any) -> Examined:
    try:
        found = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        return _fault("failed", f"it was not examined: {first_line(cause)}")
    if "ended" in found:
        return _ended(found["ended"], found["doing"])
    try:
        return Examined.model_validate(found["answer"])
    except ValidationError as error:
        return _fault("bad", f"what its process answered is wrong: {first_line(error)}")


def _ended(how: str, said: dict[str, Any]) -> Examined:
    try:
        last = parse(Doing, said)
    except InputError:
        return _fault("failed", how)
    return _fault(last.blame, f"it cannot be used: {how} while {last.doing}")


def _fault(state: Any, reason: str) -> Examined:
    return Examined(fault=Fault(state=state, reason=" ".join(reason.split())))
