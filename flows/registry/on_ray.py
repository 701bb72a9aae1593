"""Registers finished cells in Ray tasks, so that the driver of many does not do it all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray

from modcap.flows.registry.owner import check_name
from modcap.flows.registry.publish import publish
from modcap.flows.reports.cell_record import Finished

__all__ = ["register_on_ray"]

_OF_MLFLOW = "MLFLOW_"
_MEMORY = 512 << 20  # asked of Ray


def register_on_ray(cells: Sequence[tuple[Finished, str]], experiment: str) -> Any:
    """Starts to publish the cells of one checkpoint, each under its name; the task answers with
    NAME/VERSION of each, and with what is to be said of its candidate.

    Args:
        cells: what is published, and the name of its registered model.
        experiment: of MLflow, which workers know by what this process knows of it.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith(_OF_MLFLOW)}
    options = {"name": f"register {cells[0][1]}"}
    return _register.options(**options).remote(list(cells), experiment, own)


@ray.remote(num_cpus=1, memory=_MEMORY, max_retries=2)
def _register(
    cells: Sequence[tuple[Finished, str]],
    experiment: str,
    environment: Mapping[str, str],
) -> tuple[tuple[str, str], ...]:
    with _environment(environment):
        for done, name in cells:
            check_name(done, name)
        made = [publish(done, experiment=experiment, model_name=name) for done, name in cells]
    return tuple((f"{m.model_name}/{m.model_version}", m.candidate.reason) for m in made)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for a while: who works here next does not have them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
