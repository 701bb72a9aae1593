"""A scan: every checkpoint below an S3 prefix becomes what the policy says, once.

What was made of an object is noted under its address, version (ETag), manifest and policy; a noted
one is not looked at again. Equal content under another name costs nothing either: its jobs have
equal keys.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

import ray
from prefect import flow
from prefect.artifacts import create_table_artifact

from modcap.core.errors import ModcapError
from modcap.core.serialization import canonical, digest
from modcap.flows.execution.apart import Computed, Owned, execute_apart
from modcap.flows.execution.connect import connected
from modcap.flows.execution.examine import Examined
from modcap.flows.execution.examined import examined
from modcap.flows.execution.execute import Counts, Results, execute
from modcap.flows.execution.prefect_page import shown_in_prefect
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import EXPERIMENT, THREADS
from modcap.flows.registry.mlflow_runs import runs_url
from modcap.flows.registry.on_ray import register_on_ray
from modcap.flows.registry.version_tags import version_of_modcap
from modcap.flows.reports.cell_record import (
    Finished,
    finished,
    jobs_of,
    report,
    warnings_of,
)
from modcap.flows.requests.blame import Fault, fault_of, said_of
from modcap.flows.requests.candidate import Candidate
from modcap.flows.requests.description import ready
from modcap.flows.requests.request import Ready
from modcap.flows.requests.scan_policy import Policy
from modcap.jobs.job import REVISION, Cell
from modcap.jobs.plan import CellPlan, Plan
from modcap.ptq.measured import TOP1, Scale
from modcap.tasks.storage.lease import Lease, lease
from modcap.tasks.storage.objects import find
from modcap.tasks.storage.store import Store
from modcap.tasks.workers.gpus import has_gpu
from modcap.tasks.workers.isolation import Limits

__all__ = ["run_scan", "scan"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2")
_MANIFESTS = (".modcap.yaml", ".modcap.json")


@flow(name="scan", flow_run_name="{prefix}", task_runner=THREADS)  # type: ignore[arg-type]
def scan(prefix: str, policy: Policy) -> dict[str, Any]:
    """Quantizes and registers every new or changed checkpoint below ``prefix``; one pass.

    Raises:
        ModcapError: at its end, with the report, where any failed.
    """
    with connected() as store, Progress() as progress, shown_in_prefect(progress):
        report = run_scan(prefix, policy, store, progress)
    failed = [row for row in report["checkpoints"] if row["state"] == "failed"]
    if failed:
        raise ModcapError(
            f"{len(failed)} of {len(report['checkpoints'])} checkpoints failed, and the next pass "
            f"tries again: {failed[0]['checkpoint']}: {failed[0]['reason']}",
            report,
        )
    return report


@dataclass
class Outcome:
    """What became of one object: registered, known, bad, failed, waiting or unmatched."""

    checkpoint: str
    state: str
    reason: str = ""
    versions: tuple[str, ...] = ()
    top1: tuple[float | None, ...] = ()  # of each version, in percent, where that was measured
    measured: tuple[str, ...] = ()  # of each version, with the metric
    warnings: tuple[str, ...] = ()  # that a version may be wrong, or why it is no candidate


@dataclass(frozen=True)
class _New:
    """A checkpoint that this pass works on, and where its outcome is noted."""

    candidate: Candidate
    note: str
    allowed: dict[str, Any]


def run_scan(prefix: str, policy: Policy, store: Store, progress: Progress) -> dict[str, Any]:
    """The body of the flow. Of two passes at once over one prefix, the second does nothing."""
    start = time.monotonic()
    name = f"scan-{digest(prefix.rstrip('/').encode())[:16]}"
    with lease(store, name, say=progress.note) as mine:
        if mine is None:
            return {"prefix": prefix, "busy": True, "checkpoints": [], "executed": 0}
        outcomes, executed = _pass(prefix, policy, store, progress, mine)
    rows = [asdict(outcome) for outcome in outcomes]
    create_table_artifact(rows, key="scan", description=prefix)
    seconds = round(time.monotonic() - start, 1)
    return {
        "prefix": prefix,
        "busy": False,
        "checkpoints": rows,
        "executed": executed,
        "seconds": seconds,
    }


def _pass(
    prefix: str, policy: Policy, store: Store, progress: Progress, mine: Lease
) -> tuple[list[Outcome], int]:
    limits = Limits.from_environment()
    outcomes: list[Outcome] = []
    new, stems = _news(prefix, policy, store, outcomes, limits)
    places = {each.candidate.address: each for each in new}
    executed, settled = 0, 0
    for batch in examined([each.candidate for each in new], store, limits, progress):
        mine.check()
        found, done = _settle_batch(batch, stems, store, limits, progress)
        executed += done
        outcomes += (_settled(store, places[each.checkpoint], each) for each in found)
        settled += len(found)
        progress.note(f"{settled} of {len(new)} checkpoints settled")
    return sorted(outcomes, key=lambda outcome: outcome.checkpoint), executed


def _settle_batch(
    batch: Sequence[tuple[Candidate, Examined]],
    stems: frozenset[str],
    store: Store,
    limits: Limits,
    progress: Progress,
) -> tuple[list[Outcome], int]:
    """What becomes of candidates that were examined, and how many jobs ran for it."""
    outcomes: list[Outcome] = []
    owned: list[Owned[Candidate]] = []
    for candidate, found in batch:
        cells = _ready(candidate, found, stems)
        if isinstance(cells, Fault):
            outcomes.append(_outcome(candidate, cells))
        else:
            owned.append(Owned(candidate, tuple(cells)))
    computed, executed = _computed(owned, store, limits, progress)
    outcomes += (_outcome(e[0], _fault_of_work(e[1])) for e in computed if isinstance(e, tuple))
    for some in _of_other_names([each for each in computed if isinstance(each, Computed)]):
        outcomes += _registered(some, store)
    return outcomes, executed


def _computed(
    owned: Sequence[Owned[Candidate]], store: Store, limits: Limits, progress: Progress
) -> tuple[list[Computed[Candidate] | tuple[Candidate, Exception]], int]:
    """The cells of all, computed, and how many jobs ran for it."""
    executed = 0
    try:
        progress.note(f"MLflow runs: {runs_url(EXPERIMENT)}")
    except ModcapError as error:  # without MLflow, nothing could be registered
        return [(each.owner, error) for each in owned], 0

    owners = {id(ready.cell): each.owner for each in owned for ready in each.cells}

    def run(cells: Sequence[Cell]) -> tuple[Plan, Results, Counts]:
        nonlocal executed
        concerned = {owner.address: owner for owner in (owners[id(cell)] for cell in cells)}

        def refill() -> None:  # whoever examines a candidate puts its inputs into the store
            deque(examined(list(concerned.values()), store, limits, progress), maxlen=0)

        plan, results, counts = execute(cells, store, progress, refill=refill)
        executed += counts.executed
        return plan, results, counts

    return list(execute_apart(owned, run, progress)), executed


def _ready(candidate: Candidate, found: Examined, stems: frozenset[str]) -> Sequence[Ready] | Fault:
    if found.fault or found.description is None:
        return found.fault or Fault(state="failed", reason="nothing was found of it")
    if found.name != candidate.stem and found.name in stems:
        reason = f"its manifest's name {found.name!r} is that of another checkpoint: choose another"
        return Fault(state="bad", reason=reason)
    cells = ready(found.description)
    if any(cell.request.metric != candidate.rule.metric for cell in cells):
        return Fault(state="failed", reason="another metric was prepared than the policy names")
    return [cell.on(has_gpu()) for cell in cells]


def _outcome(candidate: Candidate, fault: Fault) -> Outcome:
    return Outcome(candidate.address, fault.state, fault.reason)


def _fault_of_work(error: Exception) -> Fault:
    """What computing or registering raised: bad is what a job found wrong with the input; what
    nobody foresaw may be ours, and is tried again."""
    if isinstance(error, ModcapError):
        return fault_of(error, own_images=False)
    return Fault(state="failed", reason=said_of(error))


def _of_other_names(
    computed: Sequence[Computed[Candidate]],
) -> Iterator[list[Computed[Candidate]]]:
    """Lists without a name twice: a name is the first one's who takes it, not of both at once."""
    left = list(computed)
    while left:
        taken: set[str] = set()
        now: list[Computed[Candidate]] = []
        later: list[Computed[Candidate]] = []
        for each in left:
            own = {cell.request.model_name for cell, _ in each.cells}
            (later if own & taken else now).append(each)
            taken |= own
        yield now
        left = later


def _registered(computed: Sequence[Computed[Candidate]], store: Store) -> list[Outcome]:
    """Registers the cells of checkpoints, side by side."""
    started = [(each, _start_to_register(each, store)) for each in computed]
    return [_awaited(each, task) for each, task in started]


def _awaited(computed: Computed[Candidate], task: Any) -> Outcome:
    """What the task that registers came to; ``task`` may be what hindered its start."""
    try:
        if isinstance(task, Exception):
            raise task
        made = tuple(ray.get(task))
    except Exception as error:
        return _outcome(computed.owner, _fault_of_work(getattr(error, "cause", error)))
    metas = [computed.results[plan.evaluate].meta for _, plan in computed.cells]
    top1 = tuple(meta.get(TOP1) for meta in metas)
    said = tuple(_measured(meta) for meta in metas)
    versions = tuple(version for version, _ in made)
    warnings = tuple(dict.fromkeys([*_warnings(computed), *(why for _, why in made if why)]))
    return Outcome(computed.owner.address, "registered", "", versions, top1, said, warnings)


def _warnings(computed: Computed[Candidate]) -> Iterator[str]:
    """That a version of it may be wrong."""
    for cell, planned in computed.cells:
        yield from warnings_of(cell, computed.results[planned.evaluate_full].meta)


def _measured(meta: dict[str, Any]) -> str:
    """Such as ``agreement 97.31 %``."""
    scale = Scale.of(meta)
    return f"{scale.words} {scale.said(scale.value(meta))}"


def _start_to_register(computed: Computed[Candidate], store: Store) -> Any:
    """The task that does it, or what is wrong already."""
    try:
        cells = [
            (_finished(computed, cell, planned, store), cell.request.model_name)
            for cell, planned in computed.cells
        ]
        return register_on_ray(cells, EXPERIMENT)
    except Exception as error:
        return error


def _news(
    prefix: str, policy: Policy, store: Store, outcomes: list[Outcome], limits: Limits
) -> tuple[list[_New], frozenset[str]]:
    """What is new, or has changed; of the others, the outcome is said. And all stems, which are
    names that each has by right."""
    objects = {found.address: found for found in find(prefix)}
    rested = datetime.now(timezone.utc) - timedelta(seconds=policy.settle_seconds)
    new: list[_New] = []
    checkpoints = {a: found for a, found in objects.items() if a.endswith(_SUFFIXES)}
    allowed = policy.permissions.model_dump(mode="json") | {
        "limits": asdict(limits),
        "made_by": [REVISION, version_of_modcap()],  # another one may know better
    }
    for address, found in checkpoints.items():
        rule = policy.rule(address.removeprefix(prefix).lstrip("/"))
        if rule is None:
            outcomes.append(Outcome(address, "unmatched", "no rule of the policy matches its name"))
            continue
        stem = address[: -len(PurePosixPath(address).suffix)]
        beside = next((objects[stem + s] for s in _MANIFESTS if stem + s in objects), None)
        identity = [address, found.version, beside and beside.version, rule.identity]
        note = f"scans/{digest(canonical(identity))}.json"
        known = store.get_document(note)
        earlier = _noted(known[0], allowed) if known is not None else None
        if earlier is not None:
            state = "known" if earlier.state == "registered" else earlier.state
            outcomes.append(replace(earlier, checkpoint=address, state=state))
            continue
        youngest = max(found.modified, beside.modified) if beside else found.modified
        if youngest > rested:
            outcomes.append(Outcome(address, "waiting", "it may still be uploaded"))
            continue
        if found.bytes > limits.file_bytes:  # before anybody fetches it
            gib = limits.file_bytes / 2**30
            reason = f"it has {found.bytes / 2**30:.1f} GiB, and {gib:g} are read at most"
            outcomes.append(Outcome(address, "bad", reason))
            continue
        candidate = Candidate(
            address=address,
            bytes=found.bytes,
            beside=beside.address if beside else None,
            rule=rule,
            permissions=policy.permissions,
        )
        new.append(_New(candidate, note, allowed))
    return new, frozenset(PurePosixPath(address).stem for address in checkpoints)


def _settled(store: Store, new: _New, outcome: Outcome) -> Outcome:
    """Notes what stays as it is until the object changes: no failure, and nothing that waits."""
    if outcome.state not in ("failed", "waiting"):
        noted = asdict(outcome) | {"permissions": new.allowed}
        store.put_document(new.note, json.dumps(noted).encode())
    return outcome


def _noted(document: bytes, allowed: dict[str, Any]) -> Outcome | None:
    """What an earlier pass made of it; None where it was bad and other things, or limits, are
    allowed now."""
    values = json.loads(document)
    before = values.pop("permissions", None)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    earlier = Outcome(**{**values, **lists})
    same = before == json.loads(json.dumps(allowed))
    return earlier if same or earlier.state == "registered" else None


def _finished(
    computed: Computed[Candidate], cell: Ready, planned: CellPlan, store: Store
) -> Finished:
    results = computed.results
    said = report(cell, planned, results) | {"jobs": jobs_of(computed.counts)}
    done = finished(cell, planned, computed.plan, results, said, {})
    store.put_artifact(said["artifact_digest"], done.artifact)
    return done
