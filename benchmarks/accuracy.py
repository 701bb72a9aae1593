"""Top-1 of the shipped checkpoints by bits, selection and seed, on the 10,000 test images.

    python benchmarks/accuracy.py                       # resumes where it was stopped
    python benchmarks/accuracy.py --networks mobilenet_v2_x0_5 --seeds 0 --fresh

Writes benchmarks/results/accuracy.json (every cell) and accuracy.md (mean and spread).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from modcap.recipe import Recipe

HERE = Path(__file__).parent
CHECKPOINTS = HERE.parent / "examples/fashion_mnist/checkpoints"
VARIANTS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn", "k": 0},
    "k=0": {"k": 0},
    "top-k, paper": {"k": 2, "homogeneity": "paper"},
    "top-k, any": {"k": 4, "homogeneity": "any"},
    "top-k, any, log": {"k": 4, "homogeneity": "any", "capacity_scale": "log"},
}


def measure(
    network: str, bits: tuple[int, int], variant: str, seed: int, preset: str
) -> dict[str, Any]:
    """One cell, in a process of its own with one thread."""
    import torch

    from modcap import checkpoint, data, quantize
    from modcap.images import ImageSet
    from modcap.jobs import top1
    from modcap.preprocess import Preprocess

    torch.set_num_threads(1)
    arch = f"modcap.zoo:{network}"
    loaded = checkpoint.load(CHECKPOINTS / f"{network}.safetensors", arch)
    preprocess = Preprocess.for_architecture(arch)
    values = {"w_bits": bits[0], "a_bits": bits[1], "seed": seed, **VARIANTS[variant]}
    recipe = Recipe.preset(preset, **values)
    pool = data.load("fashion-mnist", split="calibration", preprocess=preprocess)
    chosen = data.calibration(pool, recipe.calibration, seed)
    tests = data.load("fashion-mnist", split="evaluation", preprocess=preprocess)
    images, test_images = (
        ImageSet(torch.tensor(x.images), torch.tensor(x.labels), preprocess.mean, preprocess.std)
        for x in (chosen, tests)
    )
    start = time.perf_counter()
    done = quantize(loaded.model, images.normalized(), recipe)
    seconds = time.perf_counter() - start
    return {
        "network": network,
        "bits": f"W{bits[0]}A{bits[1]}",
        "variant": variant,
        "seed": seed,
        "preset": preset,
        "recipe_digest": recipe.digest,
        "top1": top1(done.network, test_images),
        "fp_top1": top1(loaded.model, test_images),
        "oscillation": done.oscillation,
        "final_error": done.losses[-1],
        "groups": [list(done.modules[a:b]) for a, b in done.groups if b - a > 1],
        "artifact_bytes": len(done.artifact),
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and spread over seeds for each network, bits and variant."""
    lines = [
        "| network | bits | variant | top-1 % (mean, min to max) | drop | oscillation | s |",
        "|---|---|---|---|---|---|---|",
    ]
    keys = sorted({(r["network"], r["bits"], list(VARIANTS).index(r["variant"])) for r in rows})
    for network, bits, index in keys:
        variant = list(VARIANTS)[index]
        some = [
            r for r in rows if (r["network"], r["bits"], r["variant"]) == (network, bits, variant)
        ]
        top = [r["top1"] for r in some]
        mean = statistics.mean(top)
        lines.append(
            f"| {network} | {bits} | {variant} | {mean:.2f} ({min(top):.2f} to {max(top):.2f}, "
            f"n={len(top)}) | {some[0]['fp_top1'] - mean:.2f} "
            f"| {statistics.mean(r['oscillation'] for r in some):.3f} "
            f"| {statistics.mean(r['seconds'] for r in some):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2_x0_5", "resnet18_narrow"])
    parser.add_argument("--bits", nargs="+", default=["2/4", "4/4"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    args = parser.parse_args()

    path = HERE / "results/accuracy.json"
    rows = json.loads(path.read_text()) if path.exists() and not args.fresh else []
    known = {(r["network"], r["bits"], r["variant"], r["seed"], r["recipe_digest"]) for r in rows}
    todo = []
    for seed in args.seeds:
        for network in args.networks:
            for bits in (tuple(map(int, text.split("/"))) for text in args.bits):
                for variant in args.variants:
                    values = {
                        "w_bits": bits[0],
                        "a_bits": bits[1],
                        "seed": seed,
                        **VARIANTS[variant],
                    }
                    recipe = Recipe.preset(args.preset, **values)
                    name = (network, f"W{bits[0]}A{bits[1]}", variant, seed, recipe.digest)
                    if name not in known:
                        todo.append((network, bits, variant, seed, args.preset))
    with ProcessPoolExecutor(args.workers) as pool:
        for future in as_completed([pool.submit(measure, *cell) for cell in todo]):
            rows.append(future.result())
            path.write_text(json.dumps(rows, indent=1) + "\n")
            path.with_suffix(".md").write_text(table(rows))
            last = rows[-1]
            print(
                {n: last[n] for n in ("network", "bits", "variant", "seed", "top1", "seconds")},
                flush=True,
            )
    print(table(rows))


if __name__ == "__main__":
    main()
