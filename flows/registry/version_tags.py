"""What a consumer of the registry looks for: the tags of a registered version."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping

from modcap.core.serialization import canonical, digest
from modcap.data import classes
from modcap.flows.reports.cell_record import Finished
from modcap.flows.reports.environments import in_words
from modcap.ptq.measured import TOP1, Scale
from modcap.ptq.metrics import METRICS

__all__ = [
    "ARTIFACT",
    "JOBS",
    "LAYERS",
    "PUBLISH_KEY",
    "layers_digest",
    "run_tags",
    "scale_of",
    "tags_of",
    "version_of_modcap",
]

METRIC = "metric"  # by which a version was measured, where that is not top-1

PUBLISH_KEY = "modcap.publish_key"  # of a version: what it is, wherever it was logged
JOBS = "modcap.jobs"  # keys of the last jobs of a cell: all others follow from what they need
_LONGEST = 5000  # characters of a tag
ARTIFACT = "artifact_digest"  # sha256 of the packed network
LAYERS = "layers_digest"  # of a network's weight layers by their paths: of .pt2, all that is known


def tags_of(finished: Finished) -> dict[str, str]:
    """The tags of the version that holds this cell."""
    return {
        PUBLISH_KEY: finished.key,
        "bits": finished.recipe.bits_label,
        "k": str(sum(finished.selected)),
        "method": finished.recipe.method.name,
        "schedule": finished.recipe.schedule.value,
        **_figures(finished),
        "oscillation": f"{finished.oscillation:.4f}",
        "artifact_bytes": str(len(finished.artifact)),
        ARTIFACT: finished.artifact_digest,
        JOBS: " ".join(finished.jobs),
        "network_digest": finished.network_digest,
        "source_digest": finished.source["checkpoint_digest"],
        "architecture": finished.source["architecture"],
        LAYERS: layers_digest(row["layer"] for row in finished.report["layer_bits"]),
        "source_uri": finished.source["checkpoint"],
        "data_digest": finished.source["data_digest"],
        "evaluation_digest": finished.report["evaluation_digest"],
        "preprocess": finished.source["preprocess"],
        "recipe_digest": finished.recipe.digest,
        "modcap_version": version_of_modcap(),
        "environment": in_words(finished.report["environments"])[:_LONGEST],
        **{export.format: export.path for export in finished.exports},
        **({"classes_digest": classes.digest(finished.classes)} if finished.classes else {}),
        **({"warnings": "; ".join(finished.warnings)} if finished.warnings else {}),
    }


def run_tags(finished: Finished) -> dict[str, str]:
    """The same for a run, whose page people read: digests stand apart, below ``digest.``."""
    found = tags_of(finished)
    digests = {name for name in found if name.endswith("_digest")}
    apart = {f"digest.{name.removesuffix('_digest')}": found[name] for name in sorted(digests)}
    return {name: value for name, value in found.items() if name not in digests} | apart


def layers_digest(paths: Iterable[str]) -> str:
    """Equal for networks whose weight layers have equal paths, whatever their weights are."""
    return digest(canonical(list(paths)))


def _figures(finished: Finished) -> dict[str, str]:
    """What was measured, under the name of its metric; of top-1 no more than that."""
    scale, form = finished.scale, ".4f" if finished.scale.is_percent else ".6g"
    lost = scale.lost(finished.full, finished.value)
    figures = {f"fp_{scale.label}": finished.full, scale.label: finished.value, "drop": lost}
    tags = {name: format(value, form) for name, value in figures.items()}
    if scale.metric == TOP1:
        return tags
    better = "higher" if scale.higher_is_better else "lower"
    return tags | {METRIC: scale.metric, "metric_better": better}


def scale_of(tags: Mapping[str, str]) -> Scale:
    """What a version with these tags was measured in."""
    if METRIC not in tags:
        return Scale()
    name = tags[METRIC]
    if name in METRICS:
        return METRICS[name].scale
    return Scale(name, name.rpartition(":")[2], tags.get("metric_better") != "lower")


def version_of_modcap() -> str:
    """Of the package that is installed, or "source"."""
    try:
        return importlib.metadata.version("modcap")
    except importlib.metadata.PackageNotFoundError:
        return "source"
