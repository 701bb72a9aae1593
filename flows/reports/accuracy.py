"""Evaluation of a packed artifact, outside any plan."""

from __future__ import annotations

from typing import Any

from modcap.checkpoints.checkpoint import check_input
from modcap.core.errors import InputError
from modcap.data.classes import check_count
from modcap.data.preprocess import Preprocess
from modcap.export import artifact
from modcap.flows.requests.request import classes_of, evaluation_images, images_of, local_path
from modcap.jobs.kinds.evaluate import top1

__all__ = ["evaluate_artifact"]


def evaluate_artifact(
    address: str,
    spec: str,
    preprocess: str | None,
    limit: int | None,
    classes: str | None = None,
) -> dict[str, Any]:
    """Top-1 of the artifact at a local path or s3:// address on the test images of ``spec``.

    ``classes`` is a file or folder that names its classes; else the folders of ``spec`` do.
    """
    network = artifact.load(local_path(address))
    if preprocess is None:
        raise InputError(
            "--preprocess is missing: an artifact does not know how images were scaled"
        )
    transform = Preprocess.parse(preprocess)
    tests = evaluation_images(spec, transform, limit, classes=classes_of(classes))
    images = images_of(tests, transform)
    check_count(tests.classes, check_input(network, images.normalized(0, 2)), f"data {spec}")
    return {"artifact": address, "top1": top1(network, images), "images": len(images)}
