"""The page of a model that was quantized in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modcap.core import files
from modcap.flows.reports.chosen_bits import allocation_of, layer_bits
from modcap.flows.reports.document import RunReport
from modcap.flows.reports.page import run_page

if TYPE_CHECKING:
    from modcap.api.quantized import Quantized

__all__ = ["write_page"]


def write_page(done: Quantized, path: Path) -> None:
    """Writes it, whole or not at all.

    Raises:
        InputError: the path is wrong.
    """
    report = RunReport.model_validate(_fields(done))
    files.write(path, run_page(report, done.artifact).encode())


def _fields(done: Quantized) -> dict[str, Any]:
    """The fields of a report, as the flows make them of results."""
    cell, results = done.cell, done.results
    selected, evaluated = results[cell.select].meta, results[cell.evaluate].meta
    recipe = done.recipe.model_dump(mode="json")
    return {
        "name": f"{done.name} {done.recipe.bits_label}",
        "checkpoint": f"{done.name}, a model in Python",
        "command": _again(done),
        "recipe": recipe,
        "bits": done.recipe.bits_label,
        "layer_bits": layer_bits(cell.cell),
        "allocation": allocation_of(results[cell.allocate] if cell.allocate else None),
        "method": done.recipe.method.name,
        "modules": list(done.modules),
        "groups": [list(done.modules[a:b]) for a, b in done.groups],
        "k": selected["k"],
        "k_asked": done.recipe.k_asked,
        "k_compared": selected.get("compared", []),
        **done.scale.fields,
        **done.scale.figures(done.full, "fp_"),
        **done.scale.figures(done.value),
        "images": done.images,
        "oscillation": done.oscillation,
        "losses": list(done.losses),
        "final_error": done.losses[-1],
        "artifact_bytes": len(done.artifact),
        "artifact_digest": results[cell.assemble].meta["artifact"],
        "fp_bytes": done.float_bytes,
        "capacities": selected["capacities"],
        "differentials": selected["differentials"],
        "homogeneous": selected["allowed"],
        "selected": selected["selected"],
        "activations": evaluated.get("activations", {}),
        "outputs": evaluated.get("outputs", []),
        "job_times": [
            {name: result.meta[name] for name in ("label", "kind", "seconds")}
            for result in results.values()
        ],
    }


def _again(done: Quantized) -> str:
    """The call that makes it again."""
    fields = json.dumps(done.recipe.model_dump(mode="json", exclude_defaults=True), indent=1)
    return (
        f"import json, modcap\nrecipe = modcap.Recipe.make(json.loads('''{fields}'''))\n"
        "done = modcap.quantize(model, images, recipe)"
    )
