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

from botocore.exceptions import BotoCoreError, ClientError
from prefect import flow
from prefect.artifacts import create_table_artifact
from safetensors import SafetensorError, safe_open

from modcap.core.errors import InputError, ModcapError, Unavailable
from modcap.core.messages import first_line, parse
from modcap.core.serialization import canonical, digest
from modcap.flows.execution.connect import connected
from modcap.flows.execution.execute import Counts, Results, execute
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import EXPERIMENT, THREADS
from modcap.flows.registry.mlflow_runs import link_of
from modcap.flows.registry.publish import publish, sources_of
from modcap.flows.reports.cell_record import finished, jobs_of, report
from modcap.flows.requests.documents import read_mapping
from modcap.flows.requests.permissions import Permissions
from modcap.flows.requests.request import BadImages, Prepared, Request, local_path, prepare
from modcap.flows.requests.scan_policy import Choice, Manifest, Policy, Rule
from modcap.jobs.plan import CellPlan, Plan
from modcap.tasks.storage.lease import Lease, lease
from modcap.tasks.storage.objects import Found, Missing, find
from modcap.tasks.storage.store import Store

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
    """A checkpoint that this pass works on; ``stems`` are the names that others have by right."""

    found: Found
    note: str
    rule: Rule
    permissions: Permissions
    stems: frozenset[str]
    manifest: Manifest

    @property
    def name(self) -> str:
        """What its registered models are called, but for the suffix of a recipe."""
        return self.manifest.name or PurePosixPath(self.found.address).stem

    @property
    def own_images(self) -> bool:
        """Whether its manifest, not the policy, chose the images."""
        said, rule = self.manifest, self.rule
        chosen = {said.data, said.eval_data} - {None}
        return not chosen <= {rule.data, rule.eval_data}


def run_scan(prefix: str, policy: Policy, store: Store, progress: Progress) -> dict[str, Any]:
    """The body of the flow. Of two passes at once over one prefix, the second does nothing."""
    start = time.monotonic()
    name = f"scan-{digest(prefix.rstrip('/').encode())[:16]}"
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
    except Exception as error:
        return _blamed(candidate, error)


def _finish(
    candidate: _Candidate, cells: list[Prepared], store: Store, progress: Progress
) -> tuple[Outcome, int]:
    """Registers the cells of one checkpoint; computes what the common plan did not."""
    try:
        for prepared in cells:
            _check_owner(candidate, prepared.request.model_name)
        plan, results, counts = _compute(cells, store, progress)
        versions = tuple(
            _register(prepared, cell, plan, results, counts, store)
            for prepared, cell in zip(cells, plan.cells, strict=True)
        )
    except ModcapError as error:
        return _blamed(candidate, error), 0
    registered = Outcome(candidate.found.address, "registered", versions=versions)
    return registered, counts.executed


def _check_owner(candidate: _Candidate, model_name: str) -> None:
    """Refuses a registered model that was made of another object, or not by modcap."""
    others = sources_of(model_name) - {candidate.found.address}
    if others:
        raise InputError(
            f"the registered model {model_name!r} belongs to {sorted(others)[0] or 'somebody else'}"
            ": give this checkpoint another name in its manifest"
        )


def _blamed(candidate: _Candidate, error: Exception) -> Outcome:
    """``bad`` where the checkpoint is to blame, also by what nobody foresaw; ``waiting`` for what
    its manifest names and is not there yet; else ``failed``, and the next pass tries again."""
    if isinstance(error, Missing) and candidate.own_images:
        state = "waiting"
    elif isinstance(error, BadImages):
        state = "bad" if candidate.own_images else "failed"
    elif isinstance(error, ModcapError):
        own = isinstance(error, InputError) and not isinstance(error, Unavailable)
        state = "bad" if own else "failed"
    else:
        state = "failed" if isinstance(error, BotoCoreError | ClientError) else "bad"
    said = str(error)
    if not isinstance(error, ModcapError):
        said = f"it cannot be used: {type(error).__name__}: {first_line(error)}"
    return Outcome(candidate.found.address, state, " ".join(said.split()))


def _candidates(
    prefix: str, policy: Policy, store: Store, outcomes: list[Outcome]
) -> Sequence[_Candidate]:
    """What is new, or has changed, and is whole; of the others, the outcome is said."""
    objects = {found.address: found for found in find(prefix)}
    rested = datetime.now(timezone.utc) - timedelta(seconds=policy.settle_seconds)
    new: list[_Candidate] = []
    checkpoints = {a: found for a, found in objects.items() if a.endswith(_SUFFIXES)}
    stems = frozenset(PurePosixPath(address).stem for address in checkpoints)
    for address, found in checkpoints.items():
        rule = policy.rule(address.removeprefix(prefix).lstrip("/"))
        if rule is None:
            outcomes.append(Outcome(address, "unmatched", "no rule of the policy matches its name"))
            continue
        stem = address[: -len(PurePosixPath(address).suffix)]
        beside = next((objects[stem + s] for s in _MANIFESTS if stem + s in objects), None)
        identity = [address, found.version, beside and beside.version, rule.model_dump(mode="json")]
        note = f"scans/{digest(canonical(identity))}.json"
        allowed = policy.permissions
        known = store.get_document(note)
        earlier = _noted(known[0], allowed) if known is not None else None
        if earlier is not None:
            state = "known" if earlier.state == "registered" else earlier.state
            outcomes.append(Outcome(address, state, earlier.reason, tuple(earlier.versions)))
            continue
        youngest = max(found.modified, beside.modified) if beside else found.modified
        if youngest > rested:
            outcomes.append(Outcome(address, "waiting", "it may still be uploaded"))
            continue
        candidate = _Candidate(found, note, rule, allowed, stems, Manifest())
        try:
            candidate = replace(candidate, manifest=_manifest(beside))
            whole = _whole(candidate)
        except Exception as error:
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
    """Notes what stays as it is until the object changes: no failure, and nothing that waits."""
    if outcome.state not in ("failed", "waiting"):
        noted = asdict(outcome) | {"permissions": candidate.permissions.model_dump(mode="json")}
        store.put_document(candidate.note, json.dumps(noted).encode())
    return outcome


def _noted(document: bytes, permissions: Permissions) -> Outcome | None:
    """What an earlier pass made of it; None where it was bad and other things are allowed now."""
    values = json.loads(document)
    before = values.pop("permissions", None)
    earlier = Outcome(**values)
    same = before == permissions.model_dump(mode="json")
    return earlier if same or earlier.state == "registered" else None


def _request(candidate: _Candidate, choice: Choice) -> Request:
    address, rule, said = candidate.found.address, candidate.rule, candidate.manifest
    _check_manifest(candidate)
    data = said.data or rule.data
    if data is None:
        raise InputError(f"{address}: neither its manifest nor the policy names images (data)")
    fields = {
        "checkpoint": address,
        "arch": None if address.endswith(".pt2") else _architecture(candidate),
        "data": data,
        "eval_data": said.eval_data or rule.eval_data,
        "eval_images": rule.eval_images,
        "preprocess": said.preprocess or rule.preprocess,
        "name": f"{candidate.name}-{choice.suffix()}",
        "onnx": rule.onnx,
        "exports": rule.exports,
        "recipe": choice.recipe(),
    }
    return parse(Request, fields, address)


def _check_manifest(candidate: _Candidate) -> None:
    """Refuses a manifest that names what is not its owner's to choose."""
    said, rule, allowed = candidate.manifest, candidate.rule, candidate.permissions
    own = (rule.data, rule.eval_data)
    for field, place in (("data", said.data), ("eval_data", said.eval_data)):
        if place:
            allowed.check_place(place, field, own)
    if said.preprocess:
        allowed.check_preprocess(said.preprocess, rule.preprocess)
    stem = PurePosixPath(candidate.found.address).stem
    if candidate.name != stem and candidate.name in candidate.stems:
        raise InputError(
            f"its manifest's name {candidate.name!r} is that of another checkpoint: choose another"
        )


def _architecture(candidate: _Candidate) -> str | None:
    """What manifest or weights say, where they may; else what the rule says."""
    address = candidate.found.address
    said = candidate.manifest.arch or _architecture_tag(local_path(address))
    if said and said != candidate.rule.arch:
        candidate.permissions.check_architecture(said)
    return said or candidate.rule.arch


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
