"""What jobs ask for in memory beside what they take, on six networks of real size.

For each network, with random weights, and each kind of job: the one that asks for most, run alone
in a process of its own on 256 images. It stands for a worker that has run others before: as many
bytes of activations, inputs and results as a worker may keep lie in its memory. Activations in
files are a matter of the disk; libraries count as they are loaded at the start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.cells import Known, Task, arguments, collect, identity
from benchmarks.places import results
from modcap import zoo
from modcap.checkpoints import _torchvision
from modcap.core.serialization import Result, decode, encode
from modcap.data.image_set import ImageSet
from modcap.graph.network import Network, build
from modcap.jobs.activation_cache import CACHE
from modcap.jobs.cost_model import footprints
from modcap.jobs.job import REVISION, Cell, Job
from modcap.jobs.kinds.activations import tensors_of_modules
from modcap.jobs.plan import Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.reconstruct import calibrate, freeze
from modcap.quantization.insert import insert_quantizers
from modcap.recipe import Recipe

_NAMES = ("network", "kind")
_KINDS = ("capacity", "reconstruct", "correct", "tune", "evaluate")
_IMAGES = 256
_PART = 8 << 20  # bytes of an activation that is kept
_KEPT_OF_OTHERS = 192 << 20  # bytes of inputs and results, which every estimate has room for


def _torchvision_network(name: str) -> nn.Module:
    network: nn.Module = getattr(_torchvision.models(), name)()
    return network


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mobilenet_v2": (partial(_torchvision_network, "mobilenet_v2"), 224),
    "resnet18": (partial(_torchvision_network, "resnet18"), 224),
    "resnet50": (partial(_torchvision_network, "resnet50"), 224),
    "efficientnet_b0": (partial(_torchvision_network, "efficientnet_b0"), 224),
    "regnet_x_400mf": (partial(_torchvision_network, "regnet_x_400mf"), 224),
    "mobilenet_v2_x0_5": (zoo.mobilenet_v2_x0_5, 28),
}
_QUICK = ("mobilenet_v2_x0_5",)


def _images(pixels: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    channels = 1 if pixels == 28 else 3
    shape = _IMAGES, channels, pixels, pixels
    drawn = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.zeros(_IMAGES, dtype=torch.int64)
    return ImageSet(drawn, labels, (0.5,) * channels, (0.25,) * channels)


def _nearest(cell: Cell, network: Network) -> dict[int, Result]:
    """Every module rounded to nearest, as results of jobs have it."""
    x = torch.randn(2, *network.input_shape)
    found = {}
    for index, (module, bits) in enumerate(zip(network.partition.modules, cell.bits, strict=True)):
        quantized = insert_quantizers(module, bits)
        with torch.no_grad():
            calibrate([quantized], x, 2.4)
            freeze([quantized])
            x = module(x)
        meta = {"start": index, "stop": index + 1, "kind": "reconstruct"}
        found[index] = Result(tensors_of_modules([quantized], index), meta)
    return found


def _planned(cell: Cell, cache: WorkerCache) -> tuple[Plan, dict[str, Result]]:
    """The whole plan, with what is small in it done."""
    known: dict[str, Result] = {}
    while True:
        made = plan([cell], known.get)
        new = [j for j in made.jobs if j.key not in known and j.kind in ("capacity", "select")]
        if not new:
            return made, known
        for job in new:
            if job.work.small:
                needs = [known[key] for key in job.needs]
                known[job.key] = run_job(job, cache, needs)
            else:  # of data: their values do not matter
                known[job.key] = Result(meta={"capacity": float(len(known))})


def _jobs(cell: Cell, cache: WorkerCache) -> dict[str, Job]:
    """The job of each kind that asks for most."""
    recipe = Recipe.make({"capacity": "data-dependent"}, cell.recipe)
    with_data = replace(cell, recipe=recipe)
    jobs = [*_planned(cell, cache)[0].jobs, *_planned(with_data, cache)[0].jobs]
    found = {}
    for kind in _KINDS:
        of_kind = [job for job in jobs if job.kind == kind]
        found[kind] = max(of_kind, key=lambda job: job.room.memory)
    return found


def _needs(job: Job, cell: Cell, network: Network, jobs: Plan) -> list[Result]:
    """What a job reads: modules rounded to nearest, or the artifact of these."""
    nearest = _nearest(cell, network)
    by_key = {each.key: each for each in jobs.jobs}
    if job.kind == "evaluate":
        return [_assembled(job, by_key, list(nearest.values()), network)] if job.needs else []
    if job.kind == "capacity":
        return []
    work: Any = job.work
    if job.kind == "reconstruct":
        return [nearest[index] for index in range(work.first, work.start)]
    return list(nearest.values())


def _assembled(
    job: Job, by_key: dict[str, Job], states: Sequence[Result], network: Network
) -> Result:
    assemble = by_key[job.needs[0]]
    return run_job(assemble, WorkerCache.holding({network.digest: network}), states)


def _row(name: str, kind: str, known: Known) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"network": name, "kind": kind, "revision": REVISION}
    if identity(row, _NAMES) in known:
        return []
    command = [sys.executable, "-m", "benchmarks.memory", "--alone", name, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        return [row | {"error": done.stderr.strip().splitlines()[-1]}]
    return [row | json.loads(done.stdout.splitlines()[-1])]


def _write_inputs(name: str, kind: str, folder: Path) -> None:
    """The network, images and earlier results of a job, in files: who measures has made nothing."""
    make, pixels = _NETWORKS[name]
    torch.manual_seed(0)
    images = _images(pixels)
    network = build(make().eval(), images.normalized(0, 2))
    optimiser = {"iterations": 2}
    recipe = Recipe.preset("quick", calibration=_IMAGES, optimiser=optimiser, k=0, tuning=2)
    cell = Cell(network, images.digest, images.digest, recipe)
    cache = WorkerCache.holding({network.digest: network})
    job = _jobs(cell, cache)[kind]
    for number, result in enumerate(_needs(job, cell, network, _planned(cell, cache)[0])):
        document, tensors = encode(result)
        (folder / f"{number}.json").write_bytes(document)
        (folder / f"{number}.safetensors").write_bytes(tensors)
    for value in (network, images):
        (folder / value.digest).write_bytes(value.to_bytes())
    torch.save(job, folder / "job")


def _alone(name: str, kind: str) -> dict[str, Any]:
    with TemporaryDirectory() as place:
        folder = Path(place)
        command = [sys.executable, "-m", "benchmarks.memory", "--write", name, kind, place]
        subprocess.run(command, check=True, capture_output=True)
        job: Job = torch.load(folder / "job", weights_only=False)  # of this very benchmark
        count = len(list(folder.glob("*.json")))
        needs = [
            decode(*((folder / f"{n}.{s}").read_bytes() for s in ("json", "safetensors")))
            for n in range(count)
        ]
        cache = WorkerCache(lambda digest: (folder / digest).read_bytes())
        kept = _kept_of_others(job, cache)
        peak = _Peak()
        start = time.process_time()
        with peak:
            run_job(job, cache, needs)
    assert kept.numel()  # it stays until here
    return {
        "job": job.label,
        "asked": job.room.memory,
        "peak": peak.bytes,
        "seconds": round(time.process_time() - start, 1),
    }


def _kept_of_others(job: Job, cache: WorkerCache) -> torch.Tensor:
    """Fills the cache of a worker, and returns what stands for other inputs and results."""
    network = cache.network(job.inputs["network"])
    if job.work.counts_activations:
        sizes = [2 * _IMAGES * module.output for module in footprints(network)]
        bound = job.room.activation_bytes or CACHE
        for number in range(min(sum(sizes), bound) // _PART):
            cache.activations.put(number, torch.ones(_PART // 4), bound)
    own = sum(module.weights for module in footprints(network))
    return torch.ones(max(1, _KEPT_OF_OTHERS - own) // 4)


class _Peak:
    """The most memory of this process outside of files, and what of files was there before."""

    def __enter__(self) -> None:
        self._files = _status("RssFile")
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._files + _status("RssAnon"))


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def main() -> None:
    parser = arguments(__doc__, workers=1)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(_alone(*args.alone)))
        return
    if args.write:
        _write_inputs(*args.write[:2], Path(args.write[2]))
        return
    networks = _QUICK if args.quick else tuple(_NETWORKS)
    tasks: list[Task] = [partial(_row, name, kind) for name in networks for kind in _KINDS]
    path = results("memory", args.quick)
    rows = collect(path, _NAMES, () if args.tables else tasks, args.workers, args.fresh)
    for row in rows:
        if "peak" in row:
            share = row["asked"] / row["peak"]
            asked, peak = (row[part] / 2**20 for part in ("asked", "peak"))
            name, kind = f"{row['network']:20}", f"{row['kind']:12}"
            print(f"{name} {kind} asked {asked:6.0f} MB, took {peak:6.0f} MB, {share:.2f}")


if __name__ == "__main__":
    main()
