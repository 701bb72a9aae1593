"""The artifact: a quantized network as one safetensors file, weights packed to their bits.

The tensor ``header`` is compressed JSON that holds the graph, so loading needs neither the code of
the architecture nor pickle. The other tensors are, for weight layer L of module i,
``i.L.integers`` (bit stream, see :mod:`modcap.quantization.bit_packing`), ``i.L.scale`` and
``i.L.zero_point`` (per output channel) and ``i.L.bias``; for activation quantizer A ``i.A.scale``
and ``i.A.zero_point``; and what stayed float, under its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from modcap.core.errors import InputError
from modcap.core.serialization import canonical, encode_tensors
from modcap.graph.forward import run
from modcap.graph.graph_file import GraphFile, inflate, parse_header, read_tensors, split
from modcap.graph.graph_json import check_tensor, fill, graph_from_json, graph_to_json, tensors_of
from modcap.graph.network import Network
from modcap.graph.nodes import weight_layers
from modcap.quantization.bit_packing import pack, unpack
from modcap.quantization.insert import insert_quantizers, quantizers, restore
from modcap.quantization.layers import Bits

__all__ = ["QuantizedNetwork", "load", "pack_network", "unpack_network"]

FORMAT = 1
_Width = Annotated[int, Field(ge=2, le=8)]


class _Header(GraphFile):
    format: Literal[1]
    bits: list[list[tuple[_Width, _Width]]]


class QuantizedNetwork(nn.Module):
    """A hard quantized network: integer weights, quantized activations.

    Maps preprocessed images (N, C, H, W) float32 to logits (N, classes).
    """

    def __init__(
        self,
        modules: Sequence[fx.GraphModule],
        names: Sequence[str],
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)
        self.names = tuple(names)
        self.input_shape = input_shape
        self.eval().requires_grad_(False)

    @property
    def modules_in_order(self) -> list[nn.Module]:
        return list(self.chain)

    def forward(self, x: Tensor) -> Tensor:
        return run(self.chain, x)


def _layer_names(module: fx.GraphModule) -> list[str]:
    return [cast(str, node.target) for node in weight_layers(module)]


def _floats(module: fx.GraphModule) -> dict[str, Tensor]:
    """What stays float: the tensors that belong to no weight layer."""
    layers = _layer_names(module)
    state = tensors_of(module)
    return {name: t for name, t in state.items() if name.rpartition(".")[0] not in layers}


def pack_network(
    network: Network, states: Mapping[str, Tensor], bits: Sequence[Sequence[Bits]]
) -> bytes:
    """The artifact's bytes; the same for the same network, states and bits.

    Args:
        network: the full-precision network.
        states: ``i.NAME`` to tensor, as :func:`modcap.quantization.layers.state_of` names them.
        bits: of each weight layer of each module.
    """
    tensors = dict(states)
    for index, (module, widths) in enumerate(zip(network.partition.modules, bits, strict=True)):
        for layer, width in zip(_layer_names(module), widths, strict=True):
            name = f"{index}.{layer}.integers"
            tensors[name] = pack(states[name], width.weight)
        tensors |= {f"{index}.{name}": t.clone() for name, t in _floats(module).items()}
    header = {
        "format": FORMAT,
        "bits": bits,
        "graphs": [graph_to_json(module) for module in network.partition.modules],
        "input_shape": network.input_shape,
        "names": network.partition.names,
    }
    compressed = bytearray(zlib.compress(canonical(header), level=9))
    tensors["header"] = torch.frombuffer(compressed, dtype=torch.uint8)
    return encode_tensors(tensors)


def unpack_network(data: bytes) -> QuantizedNetwork:
    """The network that :func:`pack_network` packed, bit-equal in its outputs.

    Raises:
        InputError: the bytes are no artifact, or damaged.
    """
    try:
        tensors = read_tensors(data)
        header = parse_header(_Header, inflate(_compressed(tensors)))
        parts = split(tensors, len(header.graphs))
    except (InputError, zlib.error) as error:
        raise InputError(f"not a modcap artifact, or a damaged one ({error})") from None
    if len(header.bits) != len(header.graphs):
        raise InputError("not a modcap artifact, or a damaged one (bits of each module)")
    given = zip(header.graphs, header.bits, parts, strict=True)
    modules = [_rebuild(document, [Bits(*b) for b in bits], own) for document, bits, own in given]
    return QuantizedNetwork(modules, header.names, header.input_shape)


def _compressed(tensors: dict[str, Tensor]) -> bytes:
    header = tensors.pop("header", None)
    if header is None or header.dtype != torch.uint8:
        raise InputError("no header")
    return header.numpy().tobytes()


def _rebuild(document: dict[str, Any], bits: list[Bits], own: dict[str, Tensor]) -> fx.GraphModule:
    module = graph_from_json(document)
    layers = _layer_names(module)
    if len(set(layers)) != len(bits) or len(layers) != len(bits):
        raise InputError("an artifact without bits for each of its layers: it is damaged")
    floats = _floats(module)
    state = {name: own.pop(name) for name in floats if name in own}
    _check_complete(state.keys(), floats.keys())
    fill(module, state)
    for layer, width in zip(layers, bits, strict=True):
        _unpack(layer, module.get_submodule(layer), width.weight, own)
    quantized = insert_quantizers(module, bits)
    _check_complete(own.keys(), _state_names(quantized, own))
    restore(quantized, own)
    return quantized


def _check_complete(given: Collection[str], expected: Collection[str]) -> None:
    for name in set(given) ^ set(expected):
        what = "lacks" if name in expected else "holds an unknown"
        raise InputError(f"an artifact that {what} tensor '{name[:80]}': it is damaged")


def _unpack(name: str, layer: nn.Module, bits: int, own: dict[str, Tensor]) -> None:
    """Checks the tensors of one weight layer, and unpacks its integers in ``own``."""
    weight = cast(Tensor, layer.weight)
    channels = weight.shape[1 if getattr(layer, "transposed", False) else 0]
    packed = own.get(f"{name}.integers")
    if packed is None or packed.dtype != torch.uint8 or packed.ndim != 1:
        raise InputError(f"an artifact without the integers of '{name}': it is damaged")
    try:
        own[f"{name}.integers"] = unpack(packed, bits, tuple(weight.shape))
    except ValueError as error:
        raise InputError(f"an artifact is damaged at '{name}': {error}") from None
    for part, kind in (("scale", torch.float32), ("zero_point", torch.uint8)):
        _check(f"{name}.{part}", own, torch.empty(channels, dtype=kind, device="meta"))
    if layer.bias is not None:
        _check(f"{name}.bias", own, torch.empty(channels, device="meta"))


def _check(name: str, own: Mapping[str, Tensor], like: Tensor) -> None:
    if name not in own:
        raise InputError(f"an artifact that lacks tensor '{name}': it is damaged")
    check_tensor(name, own[name], like)


def _state_names(module: fx.GraphModule, own: Mapping[str, Tensor]) -> set[str]:
    """The names of what :func:`restore` reads; checks activation quantizers."""
    layers, activations = quantizers(module)
    for name in activations:
        _check(f"{name}.scale", own, torch.empty((), device="meta"))
        _check(f"{name}.zero_point", own, torch.empty((), dtype=torch.uint8, device="meta"))
    names = {f"{n}.{part}" for n in (*layers, *activations) for part in ("scale", "zero_point")}
    names |= {f"{name}.integers" for name in layers}
    return names | {f"{n}.bias" for n, layer in layers.items() if layer.layer.bias is not None}


def load(path: str | Path) -> QuantizedNetwork:
    """Reads an artifact from a local file.

    Example:
        >>> network = load("model.safetensors")  # doctest: +SKIP
        >>> logits = network(images)  # (N, C, H, W) float32, preprocessed  # doctest: +SKIP
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"artifact {path}: cannot be read ({error.strerror})") from None
    return unpack_network(data)
