"""What a consumer of the registry looks for: the tags of a registered version."""

from __future__ import annotations

import importlib.metadata

from modcap.data import classes
from modcap.flows.reports.cell_record import Finished
from modcap.flows.reports.environments import in_words

__all__ = ["ARTIFACT", "JOBS", "PUBLISH_KEY", "tags_of", "version_of_modcap"]

PUBLISH_KEY = "modcap.publish_key"  # of a version: what it is, wherever it was logged
JOBS = "modcap.jobs"  # keys of the last jobs of a cell: all others follow from what they need
_LONGEST = 5000  # characters of a tag
ARTIFACT = "artifact_digest"  # sha256 of the packed network


def tags_of(finished: Finished) -> dict[str, str]:
    """The tags of the version that holds this cell."""
    return {
        PUBLISH_KEY: finished.key,
        "bits": finished.recipe.bits_label,
        "k": str(sum(finished.selected)),
        "method": finished.recipe.method.name,
        "schedule": finished.recipe.schedule.value,
        "fp_top1": f"{finished.fp_top1:.4f}",
        "top1": f"{finished.top1:.4f}",
        "drop": f"{finished.fp_top1 - finished.top1:.4f}",
        "oscillation": f"{finished.oscillation:.4f}",
        "artifact_bytes": str(len(finished.artifact)),
        ARTIFACT: finished.artifact_digest,
        JOBS: " ".join(finished.jobs),
        "network_digest": finished.network_digest,
        "source_digest": finished.source["checkpoint_digest"],
        "architecture": finished.source["architecture"],
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


def version_of_modcap() -> str:
    """Of the package that is installed, or "source"."""
    try:
        return importlib.metadata.version("modcap")
    except importlib.metadata.PackageNotFoundError:
        return "source"
