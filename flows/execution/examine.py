"""``python -m modcap.flows.execution.examine``: reads one checkpoint after another, in a process
of its own (:mod:`modcap.tasks.workers.isolation`), and puts what jobs need of them into the store.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from modcap.flows.requests.blame import Fault, fault_of
from modcap.flows.requests.candidate import Candidate, Claim
from modcap.flows.requests.description import Description, describe
from modcap.flows.requests.local_path import local_path
from modcap.flows.requests.request import prepare_all
from modcap.flows.requests.scan_policy import Manifest
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.child import Tell, serve

__all__ = ["MODULE", "Doing", "Examined", "Task"]

MODULE = "modcap.flows.execution.examine"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Message):
    """A candidate to examine, and the store for what jobs read of it."""

    candidate: Candidate
    bucket: str
    prefix: str
    endpoint: str | None


class Doing(_Message):
    """What is done next, and what a candidate is that ends the process with it."""

    doing: str
    blame: Literal["bad", "failed"]


class Examined(_Message):
    """What was found: a name and a description, or a fault."""

    name: str = ""
    description: Description | None = None
    fault: Fault | None = None


def examine(task: Task, tell: Tell) -> Examined:
    """Reads, checks, captures and stores one candidate."""
    candidate, claim = task.candidate, Claim(task.candidate, Manifest())

    def doing(what: str, blame: Literal["bad", "failed"] = "bad") -> None:
        if what == "images" and not claim.own_images:
            blame = "failed"
        tell(Doing(doing=f"reading its {what}", blame=blame).model_dump(mode="json"))

    try:
        doing("object from the store", "failed")
        local_path(candidate.address)
        doing("manifest")
        claim = Claim.read(candidate)
        if not claim.whole:
            reason = "it is not yet what its manifest says"
            return Examined(fault=Fault(state="waiting", reason=reason))
        prepared = prepare_all(claim.requests(), doing)
        doing("network back from the store", "failed")
        store = Store(task.bucket, task.prefix, task.endpoint)
        for each in {p.calibration.digest: p for p in prepared}.values():
            each.upload(store)
        return Examined(name=claim.name, description=describe(prepared))
    except Exception as error:
        return Examined(fault=fault_of(error, claim.own_images))


def _answer(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    return examine(Task.model_validate(request), tell).model_dump(mode="json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(_answer)
