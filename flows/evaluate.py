"""Evaluation of a packed artifact, outside any plan."""

from __future__ import annotations

import re
from typing import Any

from flows.request import evaluation_images, local_path
from modcap.artifact import QuantizedNetwork, unpack_network
from modcap.errors import InputError
from modcap.preprocess import Preprocess
from modcap.results import expect
from modcap.runners import top1

__all__ = ["artifact_at", "evaluate_artifact"]

_NAMED = re.compile(r"(?:.*/)?artifacts/([0-9a-f]{64})\.safetensors")  # by its digest, in a store


def evaluate_artifact(
    address: str, spec: str, preprocess: str | None, limit: int | None
) -> dict[str, Any]:
    """Top-1 of the artifact at a local path or s3:// address on the test images of ``spec``."""
    network = artifact_at(address)
    if preprocess is None:
        raise InputError(
            "--preprocess is missing: an artifact does not know how images were scaled"
        )
    transform = Preprocess.parse(preprocess)
    images = evaluation_images(spec, transform, limit)
    return {"artifact": address, "top1": top1(network, images), "images": len(images)}


def artifact_at(address: str) -> QuantizedNetwork:
    """The network at a local path or s3:// address. Where a store named it by its digest, that is
    compared before anything of it is read.

    Raises:
        InputError: it cannot be read, is no artifact, or not what its name says.
    """
    try:
        data = local_path(address).read_bytes()
    except OSError as error:
        raise InputError(f"artifact {address}: cannot be read ({error.strerror})") from None
    if named := _NAMED.fullmatch(address):
        expect(data, named[1], f"artifact {address}")
    return unpack_network(data)
