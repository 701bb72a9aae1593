"""What tests of exports share: artifacts of networks, rounded to nearest, and their ONNX form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from modcap.export.artifact import pack_network
from modcap.graph.forward import run_batched
from modcap.graph.network import build
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.affine import levels, middle
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, state_of
from modcap.quantization.scheme import USUAL, Grid, Scheme


def artifact_of(
    model: nn.Module | Any, images: Tensor, w_bits: int, a_bits: int, scheme: Scheme = USUAL
) -> bytes:
    """The artifact of ``model``, all of its layers with the same bits."""
    network = build(model, images[:2])
    bits = BitPolicy(w_bits, a_bits, w_bits).resolve(network.partition)
    bits[0][0] = bits[-1][-1] = Bits(w_bits, a_bits)
    states, full = {}, images
    for index, (module, widths) in enumerate(zip(network.partition.modules, bits, strict=True)):
        last = index == len(network.partition.modules) - 1
        made = insert_quantizers(module, widths, scheme, last)
        with patch("modcap.quantization.layers.search_scale", whole_range):
            calibrate([made], full, 2.4)
        freeze([made])
        states |= {f"{index}.{name}": tensor for name, tensor in state_of(made)}
        full = run_batched([module], full)
    return pack_network(network, states, bits, scheme)


def whole_range(x: Tensor, bits: int, p: float, grid: Grid) -> tuple[Tensor, Tensor]:
    """In place of the search, which takes seconds."""
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=1e-6)
    scale = (high - low) / levels(bits)
    if grid.symmetric:
        scale = torch.maximum(high, -low) / (middle(bits) - 1)
    if grid.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    if grid.symmetric:
        return scale, torch.full_like(scale, middle(bits))
    return scale, torch.round(-low / scale)


def run_onnx(file: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def initializers(file: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}


def operators(file: Path) -> Sequence[str]:
    return [node.op_type for node in onnx.load(file).graph.node]
