"""What ``modcap evaluate`` takes, as a function of images: an artifact, or a file exported of one.

A file says of itself what is known of it: an artifact in its header, the others in metadata. None
of that is trusted further than to read images by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from modcap.checkpoints import exported_for
from modcap.checkpoints.export_archive import read as read_pt2
from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.data import classes
from modcap.export import Known, exporter_of, metadata_of_pt2
from modcap.export.artifact import unpack_network
from modcap.flows.registry.artifacts import REGISTRY, artifact_at
from modcap.flows.registry.placed import placed
from modcap.flows.requests.local_path import local_path
from modcap.graph.outputs import join_values

__all__ = ["Evaluated", "evaluated_at"]


@dataclass(frozen=True)
class Evaluated:
    """Something to measure.

    Attributes:
        model: maps (N, C, H, W) float32, preprocessed, to what the network returns: logits, maps,
            or several tensors.
        bytes: of the file.
        known: what it says of itself.
        stored_network: digest of the full-precision network in the store, where there is one.
        program: the archive that it was read from, where it was.
        device: that computes it: cpu or cuda.
    """

    model: Callable[[Tensor], Any]
    bytes: int
    known: Known
    stored_network: str = ""
    program: ExportedProgram | None = None
    device: str = "cpu"

    def on(self, device: str) -> Evaluated:
        """The same on ``device``; what is no artifact stays on the CPU."""
        model = placed(self.model, device)
        return self if model is self.model else replace(self, model=model, device=device)

    @property
    def checked(self) -> Callable[[Tensor], Tensor] | ExportedProgram:
        """What :func:`modcap.checkpoints.checkpoint.check_input` takes."""
        return self.program or self.model

    def rows(self, images: Tensor) -> Tensor:
        """What it returns as one tensor; see :mod:`modcap.graph.outputs`."""
        joined: Tensor = join_values(self.model(images))
        return joined


def evaluated_at(address: str) -> Evaluated:
    """What lies at ``address``: a path, s3:// or models:/.

    Raises:
        InputError: nothing, or no network.
    """
    suffix = "" if address.startswith(REGISTRY) else Path(address).suffix
    if suffix == ".onnx":
        return _onnx(address)
    if suffix == ".pt2":
        return _pt2(address)
    return _artifact(address)


def _artifact(address: str) -> Evaluated:
    data, tags = artifact_at(address)
    network = unpack_network(data)
    digests = {name: value for name, value in tags.items() if name.endswith("_digest")}
    preprocess = network.preprocess or tags.get("preprocess", "")
    known = Known({}, digests, preprocess, network.classes)
    return Evaluated(network, len(data), known, digests.get("network_digest", ""))


def _pt2(address: str) -> Evaluated:
    data = _bytes(address)
    program = read_pt2(data, address)[0]
    exported_for.check_mode(program, address)
    known = _known(metadata_of_pt2(data), address)
    return Evaluated(exported_for.runner(program), len(data), known, program=program)


def _onnx(address: str) -> Evaluated:
    from modcap.export.onnx_check import session_of

    exporter_of("onnx")
    data = _bytes(address)
    session = session_of(data, address)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise InputError(f"{address}: takes {len(inputs)} inputs: give an export of modcap")
    names = [output.name for output in outputs]

    def run(images: Tensor) -> Any:
        _check_onnx(inputs[0], images)
        found = session.run(names, {inputs[0].name: images.numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return Evaluated(run, len(data), _known(session.get_modelmeta().custom_metadata_map, address))


def _check_onnx(own: Any, images: Tensor) -> None:
    """Compares what an ONNX file takes, by its description, with ``images``.

    Raises:
        InputError: it is something else.
    """
    if own.type != "tensor(float)":
        raise InputError(f"the ONNX file takes {own.type}: export it in float32")
    exported_for.check_shape(own.shape[1:], images.shape[1:])
    if isinstance(own.shape[0], int) and own.shape[0] != len(images):
        raise InputError(
            f"the ONNX file takes {own.shape[0]} images at a time: export it for any number, by "
            f"dynamic_shapes (or dynamic_axes) of torch.onnx.export"
        )


def _known(metadata: Mapping[str, str], address: str) -> Known:
    said = {name.removeprefix("modcap."): value for name, value in metadata.items()}
    digests = {name: value for name, value in said.items() if name.endswith("_digest")}
    return Known({}, digests, said.get("preprocess", ""), _names(said.get("classes"), address))


def _names(text: str | None, address: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        return classes.of_value(json.loads(text), f"{address}: its classes")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{address}: its classes cannot be read ({first_line(error)})") from None


def _bytes(address: str) -> bytes:
    try:
        return local_path(address).read_bytes()
    except OSError as error:
        raise InputError(f"{address}: cannot be read ({error.strerror})") from None
