"""How many bytes an artifact will have, before there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modcap.export.artifact import pack_network
from modcap.graph.network import Network
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, quantizers
from modcap.quantization.scheme import USUAL, Scheme

__all__ = ["artifact_bytes"]


def artifact_bytes(
    network: Network,
    bits: Sequence[Sequence[Bits]],
    scheme: Scheme = USUAL,
    preprocess: str = "",
    classes: Sequence[str] = (),
) -> int:
    """The length of what :func:`modcap.export.artifact.pack_network` makes of these, to the byte:
    it depends on widths and names, not on values."""
    states = dict(_zeros(network, bits, scheme))
    return len(pack_network(network, states, bits, scheme, preprocess, classes))


def _zeros(
    network: Network, bits: Sequence[Sequence[Bits]], scheme: Scheme
) -> Iterator[tuple[str, Tensor]]:
    modules = network.partition.modules
    for index, (module, widths) in enumerate(zip(modules, bits, strict=True)):
        made = insert_quantizers(module, widths, scheme, index == len(modules) - 1)
        layers, activations = quantizers(made)
        for name, layer in layers.items():
            yield f"{index}.{name}.integers", torch.zeros_like(layer.weight, dtype=torch.uint8)
            if layer.layer.bias is not None:
                yield f"{index}.{name}.bias", torch.zeros_like(layer.scale)
        for name, part in (layers | activations).items():
            yield f"{index}.{name}.scale", torch.ones_like(part.scale)
            yield f"{index}.{name}.zero_point", torch.zeros_like(part.zero_point, dtype=torch.uint8)
