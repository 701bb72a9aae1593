"""Quantizers put into a module: around its weight layers, and behind the values of which
:mod:`modcap.quantization.placement` says so."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

from modcap.graph.nodes import weight_layers
from modcap.quantization.bits import Bits
from modcap.quantization.layers import ActivationQuantizer, QuantLayer
from modcap.quantization.placement import Placement, placements
from modcap.quantization.scheme import USUAL, Scheme

__all__ = [
    "attach",
    "device_of",
    "insert_quantizers",
    "layers_of",
    "quantizers",
    "restore",
    "state_of",
]


def insert_quantizers(
    module: fx.GraphModule, bits: Sequence[Bits], scheme: Scheme = USUAL, last: bool = False
) -> fx.GraphModule:
    """A copy of ``module`` with quantizers, in the float state (activation quantizers enabled).

    Where layers of different bits share an input, the larger width is taken. Layers of 0 bits stay
    as they are, and so does an input that no layer wants quantized.

    Args:
        module: in full precision.
        bits: of each of its weight layers.
        scheme: what is quantized, and on which grids.
        last: it gives the logits.
    """
    return attach(module, bits, scheme, placements(module, bits, scheme.of_all, last))


def attach(
    module: fx.GraphModule, bits: Sequence[Bits], scheme: Scheme, places: Sequence[Placement]
) -> fx.GraphModule:
    """A copy of ``module`` with activation quantizers at ``places``, see
    :func:`insert_quantizers`."""
    copied = copy.deepcopy(module)
    for node, layer_bits in zip(weight_layers(copied), bits, strict=True):
        if not layer_bits.weight:
            continue
        target, grid = cast(str, node.target), scheme.weight_grid
        quantized = QuantLayer(copied.get_submodule(target), layer_bits.weight, grid)
        copied.set_submodule(target, quantized)
    nodes = {node.name: node for node in copied.graph.nodes}
    for place in places:
        quantizer = ActivationQuantizer(place.bits, scheme.activation_grid)
        copied.add_module(place.name, quantizer)
        for value in place.values:
            _put_behind(copied.graph, nodes[value], place.name)
        if scheme.of_all:
            for layer in place.layers:
                cast(QuantLayer, copied.get_submodule(layer)).reads = (quantizer,)
    copied.recompile()
    device = device_of(module)
    return copied.to(device) if device.type == "cuda" else copied


def _put_behind(graph: fx.Graph, source: fx.Node, name: str) -> None:
    """Puts a call of the module ``name`` between a node and all that read it."""
    with graph.inserting_after(source):
        quantized = graph.call_module(name, (source,))
    for user in [user for user in source.users if user is not quantized]:
        user.replace_input_with(source, quantized)


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of ``module`` are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def quantizers(module: nn.Module) -> tuple[dict[str, QuantLayer], dict[str, ActivationQuantizer]]:
    """The weight layers and the activation quantizers of an attached module, by name, in order."""
    named = dict(module.named_modules())
    layers = {n: m for n, m in named.items() if isinstance(m, QuantLayer)}
    activations = {n: m for n, m in named.items() if isinstance(m, ActivationQuantizer)}
    return layers, activations


def layers_of(modules: Iterable[nn.Module]) -> list[QuantLayer]:
    """The weight layers of attached modules, in order."""
    return [layer for module in modules for layer in quantizers(module)[0].values()]


def state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a hard module: integers, scales, zero points and biases."""
    layers, activations = quantizers(module)
    for name, layer in layers.items():
        assert layer.integers is not None
        yield f"{name}.integers", layer.integers
        yield f"{name}.scale", layer.scale
        yield f"{name}.zero_point", layer.zero_point.to(torch.uint8)
        if getattr(layer.layer, "bias", None) is not None:
            yield f"{name}.bias", cast(Tensor, layer.layer.bias).detach()
    for name, quantizer in activations.items():
        yield f"{name}.scale", quantizer.scale.detach()
        yield f"{name}.zero_point", quantizer.zero_point.to(torch.uint8)


def restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of :func:`state_of`, onto a freshly attached module."""
    layers, activations = quantizers(module)
    for name, layer in layers.items():
        layer.restore(
            state[f"{name}.integers"],
            state[f"{name}.scale"],
            state[f"{name}.zero_point"].float(),
            state.get(f"{name}.bias"),
        )
    for name, quantizer in activations.items():
        quantizer.set(state[f"{name}.scale"], state[f"{name}.zero_point"])
