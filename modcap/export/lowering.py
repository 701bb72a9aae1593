"""Lowering: an artifact's graphs as one graph of ATen operators, its quantizers still in place.

What a graph may call is large (all of torch, in two dialects); what ``torch.export`` decomposes it
to is small. Quantizers are opaque to it: each stands as a call of ``modcap::weight``,
``modcap::bias`` or ``modcap::activation`` with its path in the network, so that an exporter puts
there what its format has for them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.func import functional_call

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.export.artifact import QuantizedNetwork
from modcap.quantization.insert import quantizers
from modcap.quantization.layers import ActivationQuantizer, QuantLayer

__all__ = ["ACTIVATION", "BIAS", "WEIGHT", "lower", "program_of", "with_quantizers"]

_LIBRARY = torch.library.Library("modcap", "DEF")
for _name in ("weight", "bias", "activation"):
    _LIBRARY.define(f"{_name}(Tensor x, str path) -> Tensor")
    _LIBRARY.impl(_name, lambda x, path: x.clone(), "CompositeExplicitAutograd")
WEIGHT: OpOverload = torch.ops.modcap.weight.default
BIAS: OpOverload = torch.ops.modcap.bias.default
ACTIVATION: OpOverload = torch.ops.modcap.activation.default


class _Activation(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        marked: Tensor = ACTIVATION(x, self.path)
        return marked


class _Layer(nn.Module):
    def __init__(self, source: QuantLayer, path: str) -> None:
        super().__init__()
        self.layer = source.layer
        self.path = path
        self.integer_bias = bool(source.reads) and source.layer.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        state = {"weight": WEIGHT(self.layer.weight, self.path)}
        if self.integer_bias:
            state["bias"] = BIAS(self.layer.bias, self.path)
        result: Tensor = functional_call(self.layer, state, (x,))
        return result


def with_quantizers(
    network: QuantizedNetwork,
    activation: Callable[[ActivationQuantizer, str], nn.Module],
    layer: Callable[[QuantLayer, str], nn.Module],
) -> QuantizedNetwork:
    """A copy of ``network`` with other modules for its quantizers; each is told its path."""
    copied = copy.deepcopy(network)
    for index, module in enumerate(copied.chain):
        layers, activations = quantizers(module)
        for name, weights in layers.items():
            module.set_submodule(name, layer(weights, f"chain.{index}.{name}"))
        for name, values in activations.items():
            module.set_submodule(name, activation(values, f"chain.{index}.{name}"))
    return copied


def program_of(network: QuantizedNetwork) -> ExportedProgram:
    """What ``torch.export`` makes of ``network``, for any number of images.

    Raises:
        InputError: it cannot be captured, or not for any number of images.
    """
    example = torch.zeros(2, *network.input_shape)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = ({0: Dim("batch")},)
            return torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever torch raises
        raise InputError(
            f"torch.export cannot capture the artifact for any number of images "
            f"({first_line(error)}): export it as safetensors"
        ) from None


def lower(network: QuantizedNetwork, kept: Iterable[OpOverload]) -> ExportedProgram:
    """``network`` as ATen operators: ``kept`` as they are, all others as torch decomposes them."""
    marked = with_quantizers(
        network,
        lambda quantizer, path: _Activation(path),
        _Layer,
    )
    program = program_of(marked)
    table = default_decompositions()
    for operator in kept:
        table.pop(operator, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowered: ExportedProgram = program.run_decompositions(table)
    return lowered
