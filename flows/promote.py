"""The gate in front of an alias: measures a registered version on held-out images, then decides."""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from prefect import flow

from modcap.core.errors import GateRefused, InputError
from modcap.data.sources import Split
from modcap.flows.registry.aliases import moving_aliases
from modcap.flows.registry.gate_figures import Measured, gate_split, measure_version
from modcap.flows.registry.mlflow_runs import closing, experiment_of, reaching
from modcap.flows.requests.gate import Gate
from modcap.tasks.storage.lease import Lease
from modcap.tasks.storage.store import Store

__all__ = ["promote", "rollback"]

GATES = "modcap-gates"
_KEPT = 20  # moves of an alias that are remembered


@flow(name="promote", flow_run_name="{gate.name} to {gate.alias}")
def promote(gate: Gate) -> dict[str, Any]:
    """Moves the alias to the version, or refuses; either is recorded in MLflow.

    Two promotions of one model at once: each decides on what it then replaces.

    Raises:
        GateRefused: a condition is not met; the message names every one.
        InputError: there is no such model, version or alias.
    """
    with reaching() as client:
        decision = _decide(client, gate)
    if decision.reasons:
        raise GateRefused(
            f"{gate.name} version {decision.measured.version.version} does not become "
            f"{gate.alias}: {'; '.join(decision.reasons)}",
            decision.report(),
        )
    return decision.report()


def _decide(client: MlflowClient, gate: Gate) -> _Decision:
    """Measures, and then, alone, decides and moves the alias, unless what it decides on has changed
    since it looked: then it looks again."""
    store = Store.from_environment()
    known: dict[tuple[str, Split], Measured] = {}

    def measure(version: ModelVersion, split: Split) -> Measured:
        key = str(version.version), split
        if key not in known:
            known[key] = measure_version(version, gate, split, store)
        return known[key]

    while True:
        seen = _look(client, gate)
        split = gate_split(gate, [v for v in (seen.version, seen.rival) if v is not None])
        own = measure(seen.version, split)
        rival = None if seen.rival is None else measure(seen.rival, split)
        with moving_aliases(gate.name) as mine:
            if _look(client, gate).numbers == seen.numbers:
                compared = tuple(_compared(gate, own, rival))
                reasons = tuple(_reasons(gate, own, compared))
                decision = _Decision(gate, own, rival, seen.before, compared, reasons)
                if not reasons:
                    decision.move(client, mine)
                decision.record(client)
                return decision


@dataclass(frozen=True)
class _Seen:
    """What a gate decides on: the version, that which it must not fall behind, and the one whose
    alias it would get."""

    version: ModelVersion
    rival: ModelVersion | None
    before: ModelVersion | None

    @property
    def numbers(self) -> tuple[str | None, ...]:
        versions = (self.version, self.rival, self.before)
        return tuple(None if v is None else str(v.version) for v in versions)


def _look(client: MlflowClient, gate: Gate) -> _Seen:
    version = _version(client, gate)
    rival = None if gate.against is None else _aliased(client, gate.name, gate.against)
    if rival is None and gate.against not in (None, gate.alias):
        raise InputError(f"{gate.name} has no version with alias {gate.against!r}")
    if rival is not None and rival.version == version.version:
        rival = None
    return _Seen(version, rival, _aliased(client, gate.name, gate.alias))


@flow(name="rollback", flow_run_name="{name} {alias} back")
def rollback(name: str, alias: str = "champion") -> dict[str, Any]:
    """Gives the alias back to the version that had it before the last promotion."""
    with reaching() as client, moving_aliases(name) as mine:
        current = _aliased(client, name, alias)
        history = _history(client, name, alias)
        now = None if current is None else str(current.version)
        while history and history[-1]["to"] != now:
            history.pop()  # a move that was not finished, or was undone by hand
        if current is None or not history or history[-1]["from"] is None:
            raise InputError(f"{name}@{alias} has no earlier version to go back to")
        last = history.pop()
        mine.check()
        client.set_registered_model_alias(name, alias, last["from"])
        mine.check()
        _remember(client, name, alias, history)
        moved = {"by": _who(), "at": _now(), "from": str(current.version), "to": last["from"]}
        _log_run(client, f"rollback {name}", {"name": name, "alias": alias, **moved}, {})
    return {"name": name, "alias": alias, "version": last["from"], **moved}


def _version(client: MlflowClient, gate: Gate) -> ModelVersion:
    if gate.version is None:
        found = _aliased(client, gate.name, "candidate")
        if found is None:
            raise InputError(f"{gate.name} has no version with alias 'candidate': say --version N")
        return found
    try:
        return client.get_model_version(gate.name, str(gate.version))
    except MlflowException:
        raise InputError(f"{gate.name} has no version {gate.version}") from None


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and "Registered Model" in str(error):
            raise InputError(f"there is no registered model {name!r} in MLflow") from None
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@dataclass(frozen=True)
class _Compared:
    """A figure of the version beside what is asked of it."""

    condition: str
    measured: float
    sign: str
    limit: float
    why: str  # it is refused, where it is

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.sign == "≥" else self.measured <= self.limit

    def report(self) -> dict[str, Any]:
        fields = {"condition": self.condition, "measured": self.measured, "sign": self.sign}
        return fields | {"limit": self.limit, "met": self.met}


def _compared(gate: Gate, own: Measured, rival: Measured | None) -> Iterator[_Compared]:
    scale, figures = own.scale, own.figures
    words, value = scale.words, scale.said(figures.value)
    if gate.min_top1 is not None:
        why = f"its top-1 is {value}, and {gate.min_top1:g} are needed"
        yield _Compared("min_top1", figures.value, "≥", gate.min_top1, why)
    if gate.max_drop is not None:
        unit = "points of " if scale.is_percent else "in "
        why = (
            f"it loses {scale.text(own.drop)} {unit}{words} ({scale.text(figures.full)} to "
            f"{value}), and {gate.max_drop:g} are allowed"
        )
        yield _Compared("max_drop", own.drop, "≤", gate.max_drop, why)
    if gate.max_bytes is not None:
        why = f"it takes {own.bytes:,} bytes, and {gate.max_bytes:,} are allowed"
        yield _Compared("max_bytes", own.bytes, "≤", gate.max_bytes, why)
    if rival is not None:
        yield _against(gate, own, rival)


def _against(gate: Gate, own: Measured, rival: Measured) -> _Compared:
    """Refuses versions that were measured by different metrics: one has maps, say."""
    scale, number = own.scale, rival.version.version
    if rival.scale != scale:
        raise InputError(
            f"version {number} ({gate.against}) is measured by {rival.scale.words}, and version "
            f"{own.version.version} by {scale.words}: give --metric one that fits both"
        )
    mine, other = own.figures.value, rival.figures.value
    unit = " %" if scale.is_percent else f" of {scale.words}"
    why = (
        f"version {number} ({gate.against}) is more accurate: {scale.text(other)} against "
        f"{scale.text(mine)}{unit}"
    )
    sign = "≥" if scale.higher_is_better else "≤"
    return _Compared(f"against version {number} ({gate.against})", mine, sign, other, why)


def _reasons(gate: Gate, own: Measured, compared: Sequence[_Compared]) -> Iterator[str]:
    """Why the version is refused. One whose full precision guesses meets every other condition
    with ease; who wants it nevertheless says which top-1 is enough."""
    yield from (each.why for each in compared if not each.met)
    if own.doubt and gate.min_top1 is None:
        yield f"{own.doubt}; or say with --min-top1 what is enough"


@dataclass(frozen=True)
class _Decision:
    gate: Gate
    measured: Measured
    rival: Measured | None
    before: ModelVersion | None
    compared: tuple[_Compared, ...]
    reasons: tuple[str, ...]

    def move(self, client: MlflowClient, mine: Lease) -> None:
        """The move itself is one request. It is remembered first: a rollback looks for what led to
        the version of the alias, and passes over what did not come to pass."""
        name, alias, version = self.gate.name, self.gate.alias, self.measured.version.version
        earlier = None if self.before is None else str(self.before.version)
        if earlier != str(version):
            entry = {"from": earlier, "to": str(version), "by": _who(), "at": _now()}
            history = [*_history(client, name, alias), entry]
            mine.check()
            _remember(client, name, alias, history)
            mine.check()
            client.set_registered_model_alias(name, alias, version)

    def report(self) -> dict[str, Any]:
        own, scale = self.measured.figures, self.measured.scale
        rival = None if self.rival is None else self.rival.figures.value
        against = {f"against_{scale.label}": rival, "against_value": rival}
        return {
            "name": self.gate.name,
            "alias": self.gate.alias,
            "version": str(self.measured.version.version),
            "from_version": None if self.before is None else str(self.before.version),
            "passed": not self.reasons,
            "reasons": list(self.reasons),
            "conditions": [each.report() for each in self.compared],
            "warnings": self.warnings,
            **scale.fields,
            **scale.figures(own.value),
            **scale.figures(own.full, "fp_"),
            "drop": own.lost,
            "images": self.measured.images,
            "measured": self.measured.said,
            "bytes": self.measured.bytes,
            **against,
            "by": _who(),
            "at": _now(),
        }

    @property
    def warnings(self) -> list[str]:
        """What says that the figures may mean nothing."""
        own = self.measured.version.tags.get("warnings")
        return [text for text in (self.measured.doubt, *self.measured.notes, own) if text]

    def record(self, client: MlflowClient) -> None:
        """A run in the experiment of gates, and tags on the version."""
        report = self.report()
        against = [name for name in report if name.startswith("against_")]
        measured = {
            name: float(report[name])
            for name in ("top1", "fp_top1", "value", "fp_value", "drop", "bytes", *against)
            if report.get(name) is not None
        }
        said = {k: v for k, v in report.items() if k not in measured} | {
            "gate": self.gate.model_dump_json(exclude={"name", "alias", "version"})
        }
        word = "passed" if not self.reasons else "refused"
        title = f"{self.gate.name} {report['version']} to {self.gate.alias}: {word}"
        run_id = _log_run(client, title, said, measured)
        version = self.measured.version
        tags = {
            "decision": word,
            "reasons": "; ".join(self.reasons),
            "by": report["by"],
            "at": report["at"],
            "run": run_id,
        }
        for tag, value in tags.items():
            name = f"gate.{self.gate.alias}.{tag}"
            client.set_model_version_tag(version.name, version.version, name, value)


def _log_run(
    client: MlflowClient, title: str, said: dict[str, Any], measured: dict[str, float]
) -> str:
    run = client.create_run(experiment_of(client, GATES), run_name=title)
    run_id = str(run.info.run_id)
    with closing(client, run_id):
        for name, value in said.items():
            client.log_param(run_id, name, str(value)[:6000])
        for name, number in measured.items():
            client.log_metric(run_id, name, number)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _history(client: MlflowClient, name: str, alias: str) -> list[dict[str, Any]]:
    tags = client.get_registered_model(name).tags
    found: list[dict[str, Any]] = json.loads(tags.get(f"modcap.history.{alias}", "[]"))
    return found


def _remember(client: MlflowClient, name: str, alias: str, history: list[dict[str, Any]]) -> None:
    text = json.dumps(history[-_KEPT:])
    client.set_registered_model_tag(name, f"modcap.history.{alias}", text)


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
