"""A scan: every checkpoint below an S3 prefix becomes what the policy says, once.

What was made of an object is noted under its address, version (ETag), manifest and policy; a noted
one is not looked at again. Equal content under another name costs nothing either: its jobs have
equal keys.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from safetensors import SafetensorError, safe_open

from flows.connect import connected
from flows.documents import read_mapping
from flows.execute import Counts, Results, execute
from flows.policy import Choice, Manifest, Policy, Rule
from flows.progress import Progress
from flows.quantize import EXPERIMENT, THREADS
from flows.report import finished, jobs_of, report
from flows.request import Prepared, Request, local_path, prepare
from flows.runs import link_of
from flows.tracking import publish
from modcap.errors import InputError, ModcapError, Unavailable
from modcap.messages import parse
from modcap.plan import CellPlan, Plan
from modcap.results import canonical, digest
from tasks.files import Found, find
from tasks.lease import Lease, lease
from tasks.store import Store

__all__ = ["run_scan", "scan"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".pt2")
_MANIFESTS = (".modcap.yaml", ".modcap.json")


@flow(name="scan", task_runner=THREADS)  # type: ignore[arg-type]
def scan(prefix: str, policy: Policy) -> dict[str, Any]:
    """Quantizes and registers every new or changed checkpoint below ``prefix``; one pass.

    Raises:
        ModcapError: at its end, with the report, where any failed.
    """
    with connected() as store, Progress() as progress:
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


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint that this pass works on."""

    found: Found
    note: str
    rule: Rule
    manifest: Manifest


def run_scan(prefix: str, policy: Policy, store: Store, progress: Progress) -> dict[str, Any]:
    """The body of the flow. Of two passes at once over one prefix, the second does nothing."""
    start = time.monotonic()
    name = f"scan-{digest(prefix.encode())[:16]}"
    with lease(store, name) as mine:
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
    outcomes: list[Outcome] = []
    prepared: list[tuple[_Candidate, list[Prepared]]] = []
    for candidate in _candidates(prefix, policy, store, outcomes):
        cells = _prepare(candidate)
        if isinstance(cells, Outcome):
            outcomes.append(_settled(store, candidate, cells))
            continue
        prepared.append((candidate, cells))
        for cell in cells:
            cell.upload(store)
    executed = 0
    try:  # all of them as one plan: side by side, on all workers
        if prepared:
            every = [p for _, cells in prepared for p in cells]
            executed += _compute(every, store, progress)[2].executed
    except ModcapError as error:
        progress.note(f"{error}: going on with one checkpoint at a time")
    for candidate, cells in prepared:
        mine.check()
        outcome, done = _finish(candidate, cells, store, progress)
        executed += done
        outcomes.append(_settled(store, candidate, outcome))
    return sorted(outcomes, key=lambda outcome: outcome.checkpoint), executed


def _prepare(candidate: _Candidate) -> list[Prepared] | Outcome:
    try:
        return [prepare(_request(candidate, choice)) for choice in candidate.rule.recipes]
    except InputError as error:
        return _blamed(candidate, error)


def _finish(
    candidate: _Candidate, cells: list[Prepared], store: Store, progress: Progress
) -> tuple[Outcome, int]:
    """Registers the cells of one checkpoint; computes what the common plan did not."""
    try:
        plan, results, counts = _compute(cells, store, progress)
        versions = tuple(
            _register(prepared, cell, plan, results, counts, store)
            for prepared, cell in zip(cells, plan.cells, strict=True)
        )
    except ModcapError as error:
        return _blamed(candidate, error), 0
    registered = Outcome(candidate.found.address, "registered", versions=versions)
    return registered, counts.executed


def _blamed(candidate: _Candidate, error: ModcapError) -> Outcome:
    """``bad`` where the checkpoint is to blame; else ``failed``, and the next pass tries again."""
    own = isinstance(error, InputError) and not isinstance(error, Unavailable)
    return Outcome(candidate.found.address, "bad" if own else "failed", str(error))


def _candidates(
    prefix: str, policy: Policy, store: Store, outcomes: list[Outcome]
) -> Sequence[_Candidate]:
    """What is new, or has changed, and is whole; of the others, the outcome is said."""
    objects = {found.address: found for found in find(prefix)}
    rested = datetime.now(timezone.utc) - timedelta(seconds=policy.settle_seconds)
    new: list[_Candidate] = []
    for address, found in objects.items():
        if not address.endswith(_SUFFIXES):
            continue
        rule = policy.rule(address.removeprefix(prefix).lstrip("/"))
        if rule is None:
            outcomes.append(Outcome(address, "unmatched", "no rule of the policy matches its name"))
            continue
        stem = address[: -len(PurePosixPath(address).suffix)]
        beside = next((objects[stem + s] for s in _MANIFESTS if stem + s in objects), None)
        identity = [address, found.version, beside and beside.version, rule.model_dump(mode="json")]
        note = f"scans/{digest(canonical(identity))}.json"
        known = store.get_document(note)
        if known is not None:
            earlier = Outcome(**json.loads(known[0]))
            state = "known" if earlier.state == "registered" else earlier.state
            outcomes.append(Outcome(address, state, earlier.reason, tuple(earlier.versions)))
            continue
        youngest = max(found.modified, beside.modified) if beside else found.modified
        if youngest > rested:
            outcomes.append(Outcome(address, "waiting", "it may still be uploaded"))
            continue
        candidate = _Candidate(found, note, rule, Manifest())
        try:
            candidate = replace(candidate, manifest=_manifest(beside))
            whole = _whole(candidate)
        except InputError as error:
            outcomes.append(_settled(store, candidate, _blamed(candidate, error)))
            continue
        if whole:
            new.append(candidate)
        else:
            outcomes.append(Outcome(address, "waiting", "it is not yet what its manifest says"))
    return new


def _manifest(beside: Found | None) -> Manifest:
    if beside is None:
        return Manifest()
    values = read_mapping(local_path(beside.address), beside.address)
    return parse(Manifest, values, beside.address)


def _whole(candidate: _Candidate) -> bool:
    stated = candidate.manifest
    if stated.bytes is not None and stated.bytes != candidate.found.bytes:
        return False
    if stated.sha256 is None:
        return True
    data = local_path(candidate.found.address).read_bytes()
    return hashlib.sha256(data).hexdigest() == stated.sha256


def _settled(store: Store, candidate: _Candidate, outcome: Outcome) -> Outcome:
    """Notes what stays as it is until the object changes: all but a failure."""
    if outcome.state != "failed":
        store.put_document(candidate.note, json.dumps(asdict(outcome)).encode())
    return outcome


def _request(candidate: _Candidate, choice: Choice) -> Request:
    address, rule, said = candidate.found.address, candidate.rule, candidate.manifest
    data = said.data or rule.data
    if data is None:
        raise InputError(f"{address}: neither its manifest nor the policy names images (data)")
    arch = None
    if not address.endswith(".pt2"):
        arch = said.arch or _architecture_tag(local_path(address)) or rule.arch
    stem = said.name or PurePosixPath(address).stem
    fields = {
        "checkpoint": address,
        "arch": arch,
        "data": data,
        "eval_data": said.eval_data or rule.eval_data,
        "eval_images": rule.eval_images,
        "preprocess": said.preprocess or rule.preprocess,
        "name": f"{stem}-{choice.suffix()}",
        "onnx": rule.onnx,
        "exports": rule.exports,
        "recipe": choice.recipe(),
    }
    return parse(Request, fields, address)


def _architecture_tag(file: Path) -> str | None:
    """``architecture`` in the metadata of a safetensors file, if it has any."""
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return (tensors.metadata() or {}).get("architecture")
    except SafetensorError:
        return None  # damaged: reading the checkpoint says how


def _compute(
    cells: Sequence[Prepared], store: Store, progress: Progress
) -> tuple[Plan, Results, Counts]:
    return execute([p.cell for p in cells], store, progress, link_of(EXPERIMENT, {}))


def _register(
    prepared: Prepared, cell: CellPlan, plan: Plan, results: Results, counts: Counts, store: Store
) -> str:
    said = report(prepared, cell, results) | {"jobs": jobs_of(counts)}
    done = finished(prepared, cell, plan, results, said, {})
    store.put_artifact(said["artifact_digest"], done.artifact)
    registered = publish(done, experiment=EXPERIMENT, model_name=prepared.request.model_name)
    return f"{registered.model_name}/{registered.model_version}"
