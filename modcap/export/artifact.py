"""The artifact: a quantized network as one safetensors file, weights packed to their bits.

The tensor ``header`` is compressed JSON that holds the graph, so loading needs neither the code of
the architecture nor pickle. The other tensors are, for weight layer L of module i,
``i.L.integers`` (bit stream, see :mod:`modcap.quantization.bit_packing`), ``i.L.scale`` and
``i.L.zero_point`` (per output channel) and ``i.L.bias``; for activation quantizer A ``i.A.scale``
and ``i.A.zero_point``; and what stayed float, under its name.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, fx, nn

from modcap.core.errors import InputError
from modcap.core.serialization import canonical, encode_tensors
from modcap.graph.forward import run
from modcap.graph.graph_json import fill, graph_from_json, graph_to_json, tensors_of
from modcap.graph.network import Network
from modcap.graph.nodes import weight_layers
from modcap.quantization.bit_packing import pack, unpack
from modcap.quantization.insert import insert_quantizers, quantizers, restore
from modcap.quantization.layers import Bits

__all__ = ["QuantizedNetwork", "load", "pack_network", "unpack_network"]

FORMAT = 1


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
        tensors = load_tensors(data)
        header = json.loads(zlib.decompress(tensors.pop("header").numpy().tobytes()))
    except (SafetensorError, ValueError, KeyError, zlib.error) as error:
        raise InputError(f"not a modcap artifact, or a damaged one ({error})") from None
    if header["format"] != FORMAT:
        raise InputError(f"artifact of format {header['format']}: this modcap reads {FORMAT}")
    modules = []
    for index, (document, widths) in enumerate(zip(header["graphs"], header["bits"], strict=True)):
        prefix = f"{index}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        modules.append(_rebuild(document, [Bits(*pair) for pair in widths], own))
    return QuantizedNetwork(modules, header["names"], tuple(header["input_shape"]))


def _rebuild(document: dict[str, Any], bits: list[Bits], own: dict[str, Tensor]) -> fx.GraphModule:
    module = graph_from_json(document)
    floats = _floats(module)
    fill(module, {name: own[name] for name in floats}, strict=False)
    quantized = insert_quantizers(module, bits)
    for name, layer in quantizers(quantized)[0].items():
        place = f"{name}.integers"
        own[place] = unpack(own[place], layer.bits, tuple(layer.weight.shape))
    restore(quantized, own)
    return quantized


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
