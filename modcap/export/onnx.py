"""ONNX with real low-bit integers, which stock runtimes run.

Weights are uint8, uint4 or uint2 behind ``DequantizeLinear``, activations pairs of
``QuantizeLinear`` and ``DequantizeLinear``; everything between is float. The graph is written from
the artifact's, so it holds the model's own names, and no trace of the machine that made it.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx

from modcap.export.artifact import QuantizedNetwork
from modcap.export.onnx_check import check_pieces, compare, session_of
from modcap.export.onnx_graph import INPUT
from modcap.export.onnx_writer import Lowered, write
from modcap.export.registry import Export
from modcap.export.storage import OPSETS, check_opset, storage_bits
from modcap.graph.nodes import weight_layers
from modcap.quantization.insert import quantizers

__all__ = ["metadata_of", "sample_images", "widths_of", "write_onnx"]

_SAMPLE = 4  # random images that an export is compared on


def write_onnx(export: Export) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file, compared with the artifact.

    Raises:
        InputError: an operator has no ONNX form, or what was written gives something else.
    """
    check_opset(export.opset)
    network = export.network
    images = sample_images(export)
    lowered = Lowered(network)
    pieces, outputs = write(lowered, export.opset, cut=True)
    check_pieces(pieces, pieces.model(outputs, {}), pieces.outputs(outputs), network, images)
    graph, outputs = write(lowered, export.opset)
    data = graph.model(outputs, metadata_of(export))
    session = session_of(data, "the ONNX form")

    def run(x: Tensor) -> list[Any]:
        found: list[Any] = session.run(graph.outputs(outputs), {INPUT: x.numpy()})
        return found

    said = compare(run, network, images)
    return data, {"opset": export.opset, **said, **_note(network, export.opset)}


def sample_images(export: Export) -> Tensor:
    """Random images, and those given."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_SAMPLE, *export.network.input_shape, generator=generator)
    return images if export.images is None else torch.cat([images, export.images])


def widths_of(network: QuantizedNetwork) -> dict[str, dict[str, int]]:
    """How many weight layers and activations have each width, and how many layers are float."""
    weights, activations = Counter[str](), Counter[str]()
    for module in network.chain:
        layers, values = quantizers(module)
        weights.update(str(layer.bits) for layer in layers.values())
        weights.update("float" for _ in weight_layers(cast(fx.GraphModule, module)))
        activations.update(str(value.bits) for value in values.values())
    return {"weights": dict(weights), "activations": dict(activations)}


def metadata_of(export: Export) -> dict[str, str]:
    """What a file says of itself: digest, bits, and what is known of where it comes from."""
    known = export.known
    given = {
        "modcap.artifact_digest": export.digest,
        "modcap.bits": _json(widths_of(export.network)),
        "modcap.recipe": _json(known.recipe) if known.recipe else "",
        "modcap.preprocess": known.preprocess,
        "modcap.classes": _json(known.classes) if known.classes else "",
        **{f"modcap.{name}": value for name, value in known.digests.items()},
    }
    return {name: value for name, value in given.items() if value}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _note(network: QuantizedNetwork, opset: int) -> dict[str, str]:
    """What this opset makes larger than it need be, if anything."""
    used = {int(width) for width in widths_of(network)["weights"] if width != "float"}
    wider = {width for width in used if storage_bits(width, opset) > storage_bits(width, 25)}
    if not wider:
        return {}
    kept = " and ".join(f"uint{width}" for width in sorted(OPSETS[opset]))
    bits = " and ".join(map(str, sorted(wider)))
    return {"note": f"opset {opset} has {kept} only: weights of {bits} bits take more room"}
