"""Encodings: scales, zero points and bits of every quantized tensor as JSON, for compilers.

In the form of AIMET's encodings 1.0.0, whose offset is the zero point with its sign turned:
real value = (integer + offset) · scale. Names are those of the ONNX form of the same artifact.
"""

from __future__ import annotations

import json
from typing import Any, cast

from torch import fx

from modcap.export.artifact import QuantizedNetwork
from modcap.export.onnx_graph import BIAS_BITS, Encoding
from modcap.export.onnx_writer import Lowered, write
from modcap.export.registry import Export
from modcap.graph.nodes import weight_layers
from modcap.quantization.affine import middle

__all__ = ["write_encodings"]

_VERSION = "1.0.0"


def write_encodings(export: Export) -> tuple[bytes, dict[str, Any]]:
    """The JSON file."""
    graph, _ = write(Lowered(export.network), export.opset)
    document = {
        "version": _VERSION,
        "activation_encodings": [_entry(e) for e in graph.encodings if e.axis is None],
        "param_encodings": [_entry(e) for e in graph.encodings if e.axis is not None],
        "excluded_layers": _floats(export.network),
        "producer": "modcap",
        "artifact_digest": export.digest,
        **({"quantizer_args": dict(export.known.recipe)} if export.known.recipe else {}),
    }
    text = json.dumps(document, indent=1, default=str)
    return text.encode(), {"tensors": len(graph.encodings)}


def _floats(network: QuantizedNetwork) -> list[str]:
    """The layers that stay float: module of the model, and layer in it."""
    return [
        f"{name}/{node.target}"
        for name, module in zip(network.names, network.chain, strict=True)
        for node in weight_layers(cast(fx.GraphModule, module))
    ]


def _entry(encoding: Encoding) -> dict[str, Any]:
    zeros = encoding.zero_point.flatten().tolist()
    centre = 0 if encoding.bits == BIAS_BITS else middle(encoding.bits)
    return {
        "name": encoding.name,
        "dtype": "INT",
        "bw": encoding.bits,
        "is_sym": encoding.axis is not None and all(zero == centre for zero in zeros),
        "enc_type": "PER_TENSOR" if encoding.axis is None else "PER_CHANNEL",
        **({} if encoding.axis is None else {"axis": encoding.axis}),
        "scale": encoding.scale.flatten().tolist(),
        "offset": [-int(zero) for zero in zeros],
    }
