"""Latency in onnxruntime: this library's integers beside the float network and its own.

    python -m benchmarks.runtime            # resumes where it was stopped
    python -m benchmarks.runtime --quick    # one network, few runs

Each row times several forms of one network, one thread, batches of 1 and of 32, one form after
another in turns: float, this library's (W8A8 with all activations and symmetric weights; low bits),
and what onnxruntime's ``quantize_static`` makes of the float one (QDQ, per channel). Percentiles
are of wall-clock time; ratios are of processor time, which others on the machine disturb less.
Networks of torchvision have random weights and 224 px: time only. Shipped ones are measured on the
test images, too. Writes benchmarks/results/runtime.json and the table of docs/export.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import modcap
from benchmarks import cells
from benchmarks.cells import Known, Task, collect_and_publish, identity
from benchmarks.places import CHECKPOINTS
from modcap import zoo
from modcap.checkpoints import _torchvision, checkpoint
from modcap.data import sources as data
from modcap.export import Export, save
from modcap.export.artifact import QuantizedNetwork
from modcap.export.onnx_check import session_of
from modcap.export.onnx_graph import INPUT
from modcap.export.onnx_writer import Lowered, write
from modcap.graph.network import Network
from modcap.jobs.job import REVISION

RANDOM = ("mobilenet_v2", "resnet18", "resnet50")
INTEGERS = {"activations": "all", "weights": "symmetric"}
FORMS: dict[str, tuple[int, int, dict[str, str]]] = {
    "W8A8": (8, 8, INTEGERS),
    "W4A8": (4, 8, {}),
    "W4A4": (4, 4, {}),
}
FLOAT, THEIRS = "float", "quantize_static"
IDENTITY = ("network",)
_SIDE = 224
_CALIBRATION = 32


def measure(name: str, quick: bool, known: Known) -> list[dict[str, Any]]:
    """The row of one network."""
    if identity({"network": name}, IDENTITY) in known:
        return []
    torch.set_num_threads(1)
    network, images, tests = _shipped(name, quick) if name in cells.NETWORKS else _random(name)
    with tempfile.TemporaryDirectory() as folder:
        files = _files(network, images, Path(folder), name in cells.NETWORKS)
        row: dict[str, Any] = {"network": name, "revision": REVISION}
        for form, file in files.items():
            row[form] = {"bytes": file.stat().st_size}
        sessions = {form: session_of(f.read_bytes(), form, 1) for form, f in files.items()}
        for batch in (1, 32):
            x = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].numpy()
            for form, times in timed(sessions, x, 2.0 if quick else 5.0).items():
                row[form] |= {f"{key}_{batch}": value for key, value in times.items()}
        for form, session in sessions.items() if tests else ():
            row[form]["top1"] = top1(session, *tests)
    return [row]


def _random(name: str) -> tuple[Network, Tensor, None]:
    torch.manual_seed(0)
    model: nn.Module = getattr(_torchvision.models(), name)(weights=None)
    images = torch.randn(_CALIBRATION, 3, _SIDE, _SIDE)
    return modcap.build(model.eval(), images[:2]), images, None


def _shipped(name: str, quick: bool) -> tuple[Network, Tensor, tuple[Tensor, Tensor]]:
    pool = data.load("fashion-mnist", split="calibration", preprocess=zoo.PREPROCESS)
    images = torch.as_tensor(
        zoo.PREPROCESS.normalize(data.calibration(pool, 8 * _CALIBRATION, 0).images)
    )
    found = data.load("fashion-mnist", split="evaluation", preprocess=zoo.PREPROCESS)
    tests = found.take(range(1000 if quick else 10_000))
    pixels = torch.as_tensor(zoo.PREPROCESS.normalize(tests.images))
    model = checkpoint.load(CHECKPOINTS / f"{name}.safetensors", f"modcap.zoo:{name}").model
    return modcap.build(model, images[:2]), images, (pixels, torch.as_tensor(tests.labels))


def _files(network: Network, images: Tensor, folder: Path, low_bits: bool) -> dict[str, Path]:
    files = {FLOAT: folder / "float.onnx", THEIRS: folder / "theirs.onnx"}
    files[FLOAT].write_bytes(float_onnx(network))
    quantize_static(files[FLOAT], images, files[THEIRS])
    for form, (w_bits, a_bits, fields) in FORMS.items():
        if form != "W8A8" and not low_bits:
            continue
        recipe = modcap.Recipe.preset(
            "quick", method="rtn", k=0, w_bits=w_bits, a_bits=a_bits, **fields
        )
        done = modcap.quantize(network, images, recipe)
        files[form] = folder / f"{form}.onnx"
        save(Export(done.artifact), "onnx", files[form])
    return files


def float_onnx(network: Network) -> bytes:
    """The network in full precision, its batch norms folded."""
    modules = network.partition.modules
    lowered = Lowered(QuantizedNetwork(modules, network.names, network.input_shape))
    graph, logits = write(lowered, 21)
    return graph.model(logits, lowered.classes, {})


def quantize_static(source: Path, images: Tensor, target: Path) -> None:
    """onnxruntime's own: least and largest values of activations, scales per channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
    )


def timed(sessions: dict[str, Any], x: np.ndarray, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of one run on ``x`` of each session, in turns, about ``seconds`` for each."""
    wall: dict[str, list[float]] = {form: [] for form in sessions}
    own: dict[str, list[float]] = {form: [] for form in sessions}
    end = time.perf_counter() + seconds * len(sessions)
    count = 0
    while count < 3 or (time.perf_counter() < end and count < 1000):
        for form, session in sessions.items():
            start, start_own = time.perf_counter(), time.thread_time()
            session.run(None, {INPUT: x})
            own[form].append(1000 * (time.thread_time() - start_own))
            wall[form].append(1000 * (time.perf_counter() - start))
        count += 1
    return {
        form: {
            "p50": round(float(np.percentile(wall[form], 50)), 3),
            "p99": round(float(np.percentile(wall[form], 99)), 3),
            "processor": round(float(np.percentile(own[form], 50)), 3),
            "runs": count,
        }
        for form in sessions
    }


def top1(session: Any, images: Tensor, labels: Tensor) -> float:
    found = [session.run(None, {INPUT: x.numpy()})[0].argmax(1) for x in images.split(250)]
    return 100 * float((torch.from_numpy(np.concatenate(found)) == labels).float().mean())


def tasks(quick: bool) -> list[Task]:
    names = ("vgg_tiny",) if quick else (*RANDOM, *cells.NETWORKS)
    return [partial(measure, name, quick) for name in names]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Times in ms, with how many times as fast as float each form is."""
    lines = [
        "| network | form | size | 1 image: p50, p99 (ms) | times float | 32 images: p50, p99 (ms) "
        "| times float | top-1 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (*RANDOM, *cells.NETWORKS).index(row["network"])):
        for form in (FLOAT, THEIRS, *FORMS):
            if form not in row:
                continue
            found, base = row[form], row[FLOAT]
            parts = []
            for batch in (1, 32):
                speed = base[f"processor_{batch}"] / found[f"processor_{batch}"]
                parts.append(f"{found[f'p50_{batch}']:.3g}, {found[f'p99_{batch}']:.3g}")
                parts.append("" if form == FLOAT else f"{speed:.2f}")
            accuracy = f"{found['top1']:.2f}" if "top1" in found else ""
            size = f"{found['bytes'] / 1000:,.0f} kB"
            lines.append(
                f"| {row['network']} | {form} | {size} | {' | '.join(parts)} | {accuracy} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    collect_and_publish(__doc__, "runtime", IDENTITY, tasks, table, "export.md", "runtime")
