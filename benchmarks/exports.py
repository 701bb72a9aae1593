"""Exports of every shipped checkpoint, run on all test images beside the artifact.

Weights are rounded to nearest: what is measured is that a file computes what its artifact does.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modcap
from benchmarks.pages import publish
from benchmarks.places import CHECKPOINTS, results
from modcap import zoo
from modcap.checkpoints import checkpoint
from modcap.data import sources as data
from modcap.export import Export, save
from modcap.export.onnx_check import session_of
from modcap.export.onnx_graph import INPUT, OUTPUT

WIDTHS = ((8, 8), (4, 8), (4, 4), (3, 3), (2, 4), (2, 2))
NAMES = ("vgg_tiny", "resnet18_narrow", "regnet_tiny", "mobilenet_v2_x0_5")
_BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 images")
    quick = parser.parse_args().quick
    tests = data.load("fashion-mnist", split="evaluation", preprocess=zoo.PREPROCESS)
    images = zoo.PREPROCESS.normalize(tests.images)[: 1000 if quick else None]
    pool = data.load("fashion-mnist", split="calibration", preprocess=zoo.PREPROCESS)
    chosen = zoo.PREPROCESS.normalize(data.calibration(pool, 256, 0).images)
    rows = [row for name in NAMES for row in measure(name, chosen, images)]
    results("exports", quick).write_text(json.dumps(rows, indent=1) + "\n")
    if not quick:
        publish("export.md", "measured", table(rows))


def measure(name: str, chosen: Tensor, images: Tensor) -> Iterator[dict[str, Any]]:
    """One row for each width."""
    architecture = f"modcap.zoo:{name}"
    model = checkpoint.load(CHECKPOINTS / f"{name}.safetensors", architecture).model
    network = modcap.build(model, chosen[:2])
    for w, a in WIDTHS:
        recipe = modcap.Recipe.preset(
            "quick", method="rtn", k=0, w_bits=w, a_bits=a, calibration=len(chosen)
        )
        done = modcap.quantize(network, chosen, recipe)
        expected, seconds = timed(done.network, images)
        row: dict[str, Any] = {"network": name, "bits": f"W{w}A{a}", "images": len(images)}
        row |= {"artifact_bytes": len(done.artifact), "artifact_seconds": seconds}
        with tempfile.TemporaryDirectory() as folder:
            for form, runner in (("onnx", onnx_runner), ("pt2", pt2_runner)):
                file = Path(folder) / form
                save(Export(done.artifact), form, file)
                found, took = timed(runner(file.read_bytes()), images)
                row |= {f"{form}_{k}": v for k, v in beside(found, expected).items()}
                row |= {f"{form}_bytes": file.stat().st_size, f"{form}_seconds": took}
        print(json.dumps(row), flush=True)
        yield row


def onnx_runner(file: bytes) -> Callable[[Tensor], Tensor]:
    session = session_of(file, "the file")
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def pt2_runner(file: bytes) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(file)).module()
    return run


@torch.no_grad()
def timed(run: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = torch.cat([run(x) for x in images.split(_BATCH)])
    return logits, round(time.perf_counter() - start, 2)


def beside(found: Tensor, expected: Tensor) -> dict[str, float]:
    return {
        "agreement": 100 * float((found.argmax(1) == expected.argmax(1)).float().mean()),
        "largest_difference": float((found - expected).abs().max()),
        "largest_logit": float(expected.abs().max()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| network | bits | artifact | ONNX | ratio | ONNX agrees | largest difference of logits "
        "| pt2 | pt2 agrees | largest difference |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        sizes = [f"{r[f'{form}_bytes'] / 1000:.0f} kB" for form in ("artifact", "onnx", "pt2")]
        ratio = r["onnx_bytes"] / r["artifact_bytes"]
        onnx, pt2 = (
            f"{r[f'{form}_agreement']:.2f} % | {r[f'{form}_largest_difference']:.2g} "
            f"of {r[f'{form}_largest_logit']:.1f}"
            for form in ("onnx", "pt2")
        )
        lines.append(
            f"| {r['network']} | {r['bits']} | {sizes[0]} | {sizes[1]} | {ratio:.2f} | {onnx} "
            f"| {sizes[2]} | {pt2} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
