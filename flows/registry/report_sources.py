"""Where a report can be had again: a run in MLflow, a registered version, a file, a folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from modcap.core.errors import InputError, ModcapError
from modcap.core.messages import first_line
from modcap.core.serialization import expect
from modcap.flows.registry.artifacts import REGISTRY, artifact_at, version_at
from modcap.flows.reports.document import RunReport, SweepReport, read_report

__all__ = ["is_run_id", "report_at"]

_RUN_ID = re.compile("[0-9a-f]{32}")
_NAMES = ("report.json", "sweep.json")


def is_run_id(text: str) -> bool:
    """Whether ``text`` is what MLflow calls a run."""
    return _RUN_ID.fullmatch(text) is not None and not Path(text).exists()


def report_at(address: str) -> tuple[RunReport | SweepReport, bytes | None]:
    """The report at ``address``, and the artifact that it is of, where that can be had.

    Args:
        address: id of an MLflow run, models:/NAME@alias, a JSON file that ``quantize --json`` or
            ``sweep --json`` printed, or a folder with such, and the artifact.

    Raises:
        InputError: there is none.
    """
    if address.startswith(REGISTRY):
        from modcap.flows.registry.mlflow_runs import reaching

        artifact, _ = artifact_at(address)
        with reaching() as client:
            run_id = version_at(client, address).run_id
        return _of_run(str(run_id), address), artifact
    if is_run_id(address):
        report = _of_run(address, f"MLflow run {address}")
    else:
        report = read_report(_file(Path(address)), f"report {address}")
    return report, next(_artifacts(report, Path(address)), None)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    raise InputError(f"report {path}: the folder holds neither {' nor '.join(_NAMES)}")


def _of_run(run_id: str, name: str) -> RunReport | SweepReport:
    from modcap.flows.registry.mlflow_runs import reaching

    import mlflow  # isort: skip  # after modcap.flows.registry.mlflow_runs, which sets what it reads at import
    from mlflow.exceptions import MlflowException

    with reaching() as client, TemporaryDirectory() as folder:
        try:
            there = {file.path for file in client.list_artifacts(run_id)}
        except MlflowException as error:
            if "API request to" in str(error):
                raise
            raise InputError(f"{name}: not in MLflow ({first_line(error)})") from None
        for own in (own for own in _NAMES if own in there):
            found = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=own, dst_path=folder
            )
            return read_report(Path(found), name)
    raise InputError(f"{name}: holds neither {' nor '.join(_NAMES)}: give a run of modcap")


def _artifacts(report: RunReport | SweepReport, beside: Path) -> Iterator[bytes]:
    """The artifact, wherever it can be had, if it is the one that the report is of."""
    if isinstance(report, SweepReport) or not report.artifact_digest:
        return
    places = (
        [str(file) for file in sorted(beside.rglob("*.safetensors"))] if beside.is_dir() else []
    )
    if report.artifact.startswith("s3://"):
        places.append(report.artifact)
    for place in places:
        with contextlib.suppress(ModcapError, OSError):
            yield expect(artifact_at(place)[0], report.artifact_digest, place)
