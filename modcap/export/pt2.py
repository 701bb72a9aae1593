"""pt2: an archive of ``torch.export`` that runs without this package.

Weights are integers, packed as in an ONNX file (2, 4 or 8 bits each), that operators of ATen unpack
and scale; activations are rounded and clipped by ATen, too.
"""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modcap.core.errors import InputError
from modcap.core.serialization import canonical
from modcap.export.artifact import QuantizedNetwork
from modcap.export.lowering import program_of, with_quantizers
from modcap.export.onnx import metadata_of, sample_images
from modcap.export.onnx_check import compare
from modcap.export.registry import Export
from modcap.export.storage import storage_bits
from modcap.quantization.affine import dequantize, levels
from modcap.quantization.bit_packing import pack
from modcap.quantization.layers import ActivationQuantizer, QuantLayer, integer_bias

__all__ = ["metadata_of_pt2", "write_pt2"]

_METADATA = "modcap.json"  # an extra file of the archive
_LONGEST = 2**22  # bytes of it that are read

_TOLERANCE = 1e-4  # of the largest logit: torch computes both


class _Layer(nn.Module):
    """A layer whose weight is unpacked and scaled in its forward."""

    packed: Tensor
    shifts: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor
    bias_unit: Tensor

    def __init__(self, source: QuantLayer) -> None:
        super().__init__()
        assert source.integers is not None
        self.width = storage_bits(source.bits, 25)
        self.shape = tuple(source.weight.shape)
        spread = [1] * len(self.shape)
        spread[source.axis] = -1
        self.layer = source.layer
        self.layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.integer_bias = bool(source.reads) and source.layer.bias is not None
        if self.integer_bias:
            unit = source.bias_unit().clone()
            bias = cast(Tensor, source.layer.bias).detach()
            self.register_buffer("bias", integer_bias(bias, unit).int())
            self.register_buffer("bias_unit", unit)
            self.layer.bias = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer("packed", pack(source.integers, self.width))
        self.register_buffer("shifts", torch.arange(0, 8, self.width, dtype=torch.uint8))
        self.register_buffer("scale", source.scale.reshape(spread))
        self.register_buffer("zero_point", source.zero_point.reshape(spread))

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.bitwise_right_shift(self.packed[:, None], self.shifts)
        values = torch.bitwise_and(shifted, levels(self.width))
        integers = values.flatten()[: math.prod(self.shape)].reshape(self.shape).float()
        weight = dequantize(integers, self.scale, self.zero_point)
        state = {"weight": weight}
        if self.integer_bias:
            state["bias"] = self.bias.float() * self.bias_unit
        result: Tensor = functional_call(self.layer, state, (x,))
        return result


class _Activation(nn.Module):
    scale: Tensor

    def __init__(self, source: ActivationQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", source.scale.detach().clone())
        self.low = -float(source.zero_point)
        self.high = self.low + levels(source.bits)

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.round(x / self.scale), self.low, self.high) * self.scale


def _plain(network: QuantizedNetwork) -> QuantizedNetwork:
    return with_quantizers(
        network, lambda source, _: _Activation(source), lambda source, _: _Layer(source)
    )


def write_pt2(export: Export) -> tuple[bytes, dict[str, Any]]:
    """The archive, compared with the artifact.

    Raises:
        InputError: torch.export cannot capture it, or gives something else.
    """
    program = program_of(_plain(export.network).eval().requires_grad_(False))
    for node in program.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(name, None)  # paths of this machine, classes of this package
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        torch.export.save(program, buffer, extra_files={_METADATA: _metadata(export)})
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    data = buffer.getvalue()
    said = compare(loaded, export.network, sample_images(export))
    for name, each in said.get("outputs", {"logits": said}).items():
        if each["largest_difference"] > _TOLERANCE * each["largest_logit"]:
            raise InputError(
                f"the pt2 form differs from the artifact by {each['largest_difference']:.2g} where "
                f"{name} reach {each['largest_logit']:.2g}: export as safetensors, and report this"
            )
    return data, said


def _metadata(export: Export) -> str:
    """What an ONNX file says of itself, under the same names."""
    return canonical(metadata_of(export)).decode()


def metadata_of_pt2(data: bytes) -> Mapping[str, str]:
    """What an archive that :func:`write_pt2` made says of itself; nothing where another did."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [e for e in archive.infolist() if e.filename.endswith(f"/extra/{_METADATA}")]
            if len(entries) != 1 or entries[0].file_size > _LONGEST:
                return {}
            found = json.loads(archive.read(entries[0]))
    except (zipfile.BadZipFile, ValueError, RecursionError):
        return {}
    said = found if isinstance(found, dict) else {}
    return {name: value for name, value in said.items() if isinstance(value, str)}
