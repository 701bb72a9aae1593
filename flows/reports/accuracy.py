"""Evaluation of a packed artifact, outside any plan."""

from __future__ import annotations

from typing import Any

from modcap.core.errors import InputError
from modcap.data.preprocess import Preprocess
from modcap.export import artifact
from modcap.flows.requests.request import evaluation_images, local_path
from modcap.jobs.kinds.evaluate import top1

__all__ = ["evaluate_artifact"]


def evaluate_artifact(
    address: str, spec: str, preprocess: str | None, limit: int | None
) -> dict[str, Any]:
    """Top-1 of the artifact at a local path or s3:// address on the test images of ``spec``."""
    network = artifact.load(local_path(address))
    if preprocess is None:
        raise InputError(
            "--preprocess is missing: an artifact does not know how images were scaled"
        )
    transform = Preprocess.parse(preprocess)
    images = evaluation_images(spec, transform, limit)
    return {"artifact": address, "top1": top1(network, images), "images": len(images)}
