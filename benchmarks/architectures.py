"""Quantizes every architecture of tests/networks.py: RTN at W8A8, a few QDrop steps at W4A4.

    python -m benchmarks.architectures [NAME ...]

Random weights and three small images: it shows what runs, not what is accurate. Prints one JSON
line for each, with the relative error of the logits at W8A8 and the seconds.
"""

from __future__ import annotations

import json
import sys
import time

import modcap
from tests.networks import MODULES, make


def main() -> None:
    small = {
        "calibration": 3,
        "optimiser": {"iterations": 2, "batch_size": 2},
        "scale_exponent": 2.0,
    }
    for name in sys.argv[1:] or list(MODULES):
        start = time.perf_counter()
        model, images = make(name)
        network = modcap.build(model, images)
        eight = modcap.Recipe.preset("quick", w_bits=8, a_bits=8, method="rtn", k=0, **small)
        four = modcap.Recipe.preset("quick", w_bits=4, a_bits=4, k=0, **small)
        nearest = modcap.quantize(network, images, eight)
        steps = modcap.quantize(network, images, four)
        row = {
            "network": name,
            "modules": len(network.partition.names),
            "w8a8_error": nearest.losses[-1],
            "w4a4_error": steps.losses[-1],
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
