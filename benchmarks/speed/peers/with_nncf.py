"""nncf: PTQ with bias correction. It has no reconstruction for convolutions; ``nncf.quantize`` is
given the bits, first and last layer are left to its 8-bit default where it lets us."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import nncf
from child import Bench, measured
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    QuantizationParameters,
)
from torch import Tensor, nn


class _Whole(nn.Module):
    """nncf adds a child to the network, which a bare ``nn.Sequential`` would call as a layer."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits


def quantize(bench: Bench) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    w_bits, a_bits = bench.spec["w_bits"], bench.spec["a_bits"]
    bits = AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(num_bits=a_bits),
        weights_quantization_params=QuantizationParameters(num_bits=w_bits),
    )
    network = nncf.quantize(
        _Whole(bench.model),
        nncf.Dataset(list(bench.batches(bench.spec["batch"]))),
        subset_size=len(bench.images) // bench.spec["batch"],
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=bench.spec.get("fast", True),
        advanced_parameters=bits,
    )
    return network, {"steps": 0}


if __name__ == "__main__":
    measured("nncf", quantize)
