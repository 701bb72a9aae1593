"""Exports of every shipped checkpoint, run on all test images beside the artifact.

    python -m benchmarks.exports            # resumes where it was stopped
    python -m benchmarks.exports --quick    # 1,000 images

Each row is written as it is measured. Weights are rounded to nearest: what is measured is that a
file computes what its artifact does.
"""

from __future__ import annotations

import io
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import modcap
from benchmarks.cells import Known, Task, arguments, collect_as_asked, identity
from benchmarks.pages import publish
from benchmarks.places import CHECKPOINTS, results
from modcap import zoo
from modcap.checkpoints import checkpoint
from modcap.data import sources as data
from modcap.export import Export, save
from modcap.export.onnx_check import session_of
from modcap.export.onnx_graph import INPUT
from modcap.jobs.job import REVISION

WIDTHS = ((8, 8), (4, 8), (4, 4), (3, 3), (2, 4), (2, 2))
NAMES = ("vgg_tiny", "resnet18_narrow", "regnet_tiny", "mobilenet_v2_x0_5")
IDENTITY = ("network", "bits")
_BATCH = 500


def main() -> None:
    args = arguments(__doc__, 1).parse_args()
    path = results("exports", args.quick)
    rows = sorted(collect_as_asked(args, path, IDENTITY, tasks(args.quick)), key=_place)
    if not args.quick:
        publish("export.md", "measured", table(rows))
    print(table(rows))


def tasks(quick: bool) -> list[Task]:
    """One for each row."""
    return [partial(measure, name, widths, quick) for name in NAMES for widths in WIDTHS]


def _place(row: dict[str, Any]) -> tuple[int, int]:
    bits = [f"W{w}A{a}" for w, a in WIDTHS]
    return sorted(NAMES).index(row["network"]), bits.index(row["bits"])


def measure(name: str, widths: tuple[int, int], quick: bool, known: Known) -> list[dict[str, Any]]:
    w, a = widths
    row: dict[str, Any] = {"network": name, "bits": f"W{w}A{a}", "revision": REVISION}
    if identity(row, IDENTITY) in known:
        return []
    tests = data.load("fashion-mnist", split="evaluation", preprocess=zoo.PREPROCESS)
    images = zoo.PREPROCESS.normalize(tests.images)[: 1000 if quick else None]
    pool = data.load("fashion-mnist", split="calibration", preprocess=zoo.PREPROCESS)
    chosen = zoo.PREPROCESS.normalize(data.calibration(pool, 256, 0).images)
    model = checkpoint.load(CHECKPOINTS / f"{name}.safetensors", f"modcap.zoo:{name}").model
    recipe = modcap.Recipe.preset(
        "quick", method="rtn", k=0, w_bits=w, a_bits=a, calibration=len(chosen)
    )
    done = modcap.quantize(modcap.build(model, chosen[:2]), chosen, recipe)
    expected, seconds = timed(done.network, images)
    row |= {"images": len(images), "artifact_bytes": len(done.artifact)}
    row["artifact_seconds"] = seconds
    with tempfile.TemporaryDirectory() as folder:
        for form, runner in (("onnx", onnx_runner), ("pt2", pt2_runner)):
            file = Path(folder) / form
            save(Export(done.artifact), form, file)
            found, took = timed(runner(file.read_bytes()), images)
            row |= {f"{form}_{k}": v for k, v in beside(found, expected).items()}
            row |= {f"{form}_bytes": file.stat().st_size, f"{form}_seconds": took}
    return [row]


def onnx_runner(file: bytes) -> Callable[[Tensor], Tensor]:
    session = session_of(file, "the file")
    return lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])


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


def table(rows: Sequence[dict[str, Any]]) -> str:
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
