"""What each kind of job computes: pure functions of parameters, inputs and earlier results."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modcap.core.errors import InputError, ModcapError
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.export import artifact
from modcap.graph.forward import BATCH, concatenate_to, run_batched
from modcap.jobs.job import Job, Kind
from modcap.jobs.worker_cache import Workbench
from modcap.ptq import capacity, oscillation, selection
from modcap.ptq import channel_correction as correction
from modcap.ptq import finetune as tuning
from modcap.ptq.reconstruct import Inputs, Progress, calibrate, harden, reconstruct
from modcap.ptq.relative_error import relative_error
from modcap.ptq.selection import Span
from modcap.quantization.insert import attach, device_of, restore, state_of
from modcap.quantization.layers import Bits
from modcap.recipe import CapacityScale, Homogeneity, Method, Optimiser, Precision, Selection

__all__ = ["run", "top1"]


def run(
    job: Job,
    bench: Workbench,
    needs: Sequence[Result],
    progress: Progress | None = None,
) -> Result:
    """Computes ``job``.

    Args:
        job: what to do.
        bench: where its inputs come from.
        needs: results of ``job.needs``, in that order.
        progress: told of the loss while a group is reconstructed.
    """
    start = time.perf_counter()
    torch.set_num_threads(job.threads)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the recipe's device is cuda and torch finds no GPU here: take device cpu, or a node "
            "with a GPU and a CUDA build of torch"
        )
    result = _RUNNERS[job.kind](job, bench, needs, progress)
    seconds = round(time.perf_counter() - start, 4)
    origin = {"kind": job.kind.value, "needs": list(job.needs), "inputs": job.inputs}
    meta = result.meta | origin | {"seconds": seconds, "label": job.label}
    return Result(result.tensors, meta)


def _layer_bits(params: Mapping[str, Any]) -> list[list[Bits]]:
    return [[Bits(*pair) for pair in module] for module in params["bits"]]


@torch.no_grad()
def _capacity(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    p = job.params
    modules = bench.network(job).partition.modules
    index: int = p["module"]
    if p["measure"] == "data-free":
        bits = [Bits(*pair) for pair in p["bits"]]
        return Result(meta={"capacity": capacity.data_free(modules[index], bits, p["alpha"])})
    x = bench.images(job, "calibration").normalized(0, p["images"]).to(job.device)
    x_quantized = x
    for module, bits in zip(modules, _layer_bits(p), strict=False):
        quantized = attach(module, bits)
        calibrate([quantized], x, p["p"])
        harden([quantized])
        x, x_quantized = run_batched([module], x), run_batched([quantized], x_quantized)
    return Result(meta={"capacity": capacity.data_dependent(x_quantized, x)})


def _select(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    p = job.params
    partition = bench.network(job).partition
    count = len(partition.modules)
    values = [float(result.meta["capacity"]) for result in needs]
    compared = values
    if p.get("capacity_scale") == CapacityScale.LOG.value:
        compared = [math.log(max(abs(v), 1e-30)) for v in values]
    differences = capacity.differentials(compared) if values else [0.0] * (count - 1)
    allowed = [True] * (count - 1)
    if p.get("homogeneity") == Homogeneity.PAPER.value:
        allowed = capacity.homogeneous(partition.modules)
    mask = _mask(p, differences, allowed, partition.names)
    found: dict[str, Any] = {
        "capacities": values,
        "differentials": differences,
        "allowed": allowed,
        **_selected(mask),
    }
    if p["selection"] == Selection.TOP_K.value and p["k"] is None and values:
        masks = (
            selection.top_k(differences, k, allowed)
            for k in selection.candidates(differences, allowed)
        )
        found["candidates"] = [_selected(mask)["groups"] for mask in masks]
    return Result(meta=found)


def _selected(mask: Sequence[bool]) -> dict[str, Any]:
    return {
        "selected": list(mask),
        "k": sum(mask),
        "groups": [list(span) for span in selection.spans(mask)],
    }


def _mask(
    p: Mapping[str, Any],
    differences: Sequence[float],
    allowed: Sequence[bool],
    names: Sequence[str],
) -> tuple[bool, ...]:
    if p["selection"] == "explicit":
        return selection.explicit(p["groups"], names)
    k = p["k"]
    if k is None:
        k = selection.automatic_k(differences, allowed)
    if p["selection"] == "random":
        return selection.random_k(k, allowed, p["seed"])
    return selection.top_k(differences, k, allowed)


def _reconstruct(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    p = job.params
    span, bits = Span(p["start"], p["stop"]), _layer_bits(p)
    floats = bench.network(job).partition.modules
    full = _full(job, bench, span.start)
    behind = _behind(job, bench, needs) if "prefix" in p else full
    inputs = Inputs(behind, full, _full(job, bench, span.stop))
    group = [attach(floats[i], b) for i, b in zip(range(*span), bits, strict=True)]
    calibrate(group, full, p["p"])
    outcome = reconstruct(
        group,
        inputs,
        Method(p["method"]),
        Optimiser(**p.get("optimiser", {"iterations": 0})),
        _group_seed(p),
        progress,
        job.activation_limit,
    )
    bench.activations.put(_place(job, (*job.needs, job.key)), outcome.output, job.activation_bytes)
    meta = {"start": span.start, "stop": span.stop, "error": outcome.error}
    return Result(_tensors(group, span.start) | {"curve": outcome.curve}, meta)


def _tensors(modules: Sequence[nn.Module], start: int) -> dict[str, Tensor]:
    """The states of ``modules``, the first of which has the index ``start``."""
    return {
        f"{index}.{name}": tensor.cpu()
        for index, module in enumerate(modules, start)
        for name, tensor in state_of(module)
    }


def _full(job: Job, bench: Workbench, stop: int) -> Tensor:
    """The full-precision activations (N, ...) in front of module ``stop``."""
    place = job.device, job.inputs["network"], job.inputs["calibration"]
    for at in range(stop, -1, -1):
        x = bench.activations.get((*place, at))
        if x is not None:
            break
    else:
        images = bench.images(job, "calibration")
        parts = (part.to(job.device) for part in images.batches(BATCH))
        at, x = 0, concatenate_to(parts, len(images), job.activation_limit)
    x = run_batched(bench.network(job).partition.modules[at:stop], x, job.activation_limit)
    bench.activations.put((*place, stop), x, job.activation_bytes)
    return x


def _place(job: Job, keys: tuple[str, ...]) -> tuple[Any, ...]:
    """Names the activations behind the results ``keys``, which see full precision in front."""
    first = job.params.get("prefix", job.params["start"])
    return job.device, job.inputs["network"], job.inputs["calibration"], first, keys


def _behind(job: Job, bench: Workbench, needs: Sequence[Result]) -> Tensor:
    """The activations (N, ...) in front of the group, behind the quantized part of its prefix."""
    p = job.params
    at, x = p["prefix"], None
    for count in range(len(needs), 0, -1):
        x = bench.activations.get(_place(job, job.needs[:count]))
        if x is not None:
            at = needs[count - 1].meta["stop"]
            break
    if x is None:
        x = _full(job, bench, at)
    floats, rest = bench.network(job).partition.modules, p["prefix_bits"][at - p["prefix"] :]
    x = run_batched(_quantized(floats, rest, _states(needs), at), x, job.activation_limit)
    bench.activations.put(_place(job, job.needs), x, job.activation_bytes)
    return x


def _group_seed(params: Mapping[str, Any]) -> int:
    """One seed per group and prefix, so that no group's draws depend on which ran before it."""
    first = params.get("prefix", params["start"])
    text = f"{params.get('seed', 0)}/{params['start']}/{params['stop']}/{first}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _states(results: Sequence[Result]) -> dict[int, dict[str, Tensor]]:
    """The states of modules, by their index, that earlier reconstructions left."""
    states: dict[int, dict[str, Tensor]] = {}
    for result in results:
        for name, tensor in result.tensors.items():
            index, _, rest = name.partition(".")
            if rest:  # all but the curve
                states.setdefault(int(index), {})[rest] = tensor
    return states


def _quantized(
    floats: Sequence[Any],
    bits: Sequence[Sequence[Sequence[int]]],
    states: Mapping[int, dict[str, Tensor]],
    start: int,
) -> list[nn.Module]:
    """Modules from ``start`` on, one for each entry of ``bits``, in the states found earlier."""
    modules: list[nn.Module] = []
    for index, module_bits in enumerate(bits, start):
        module = attach(floats[index], [Bits(*pair) for pair in module_bits])
        device = device_of(floats[index])
        restore(module, {name: tensor.to(device) for name, tensor in states[index].items()})
        modules.append(module)
    return modules


@torch.no_grad()
def _correct(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    floats = bench.network(job).partition.modules
    modules = _quantized(floats, job.params["bits"], _states(needs), 0)
    x = bench.images(job, "calibration").normalized(0, correction.IMAGES).to(job.device)
    before, after = correction.correct(floats, modules, x)
    return Result(_tensors(modules, 0), {"error_before": before, "error": after})


@torch.no_grad()
def _choose(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    """The candidate with the least final error on the calibration images; of equals the first."""
    p = job.params
    floats = bench.network(job).partition.modules
    select, *rest = needs
    errors: list[float] = []
    for candidate in p["candidates"]:
        states, rest = rest[: candidate["states"]], rest[candidate["states"] :]
        if states[-1].meta["kind"] == Kind.TUNE.value:  # of all: that knows it
            errors.append(states[-1].meta["error"])
            continue
        modules = _quantized(floats, p["bits"], _states(states), 0)
        output = run_batched(modules, _full(job, bench, 0))
        errors.append(relative_error(output, _full(job, bench, len(floats))))
    finite = [error for error in errors if math.isfinite(error)]
    if not finite:
        raise ModcapError("every k that was compared gives logits that are no numbers")
    best = errors.index(min(finite))
    stops = {stop for _, stop in p["candidates"][best]["groups"]}
    mask = [boundary not in stops for boundary in range(1, len(floats))]
    compared = [
        {
            "k": len(floats) - len(candidate["groups"]),
            "error": error if math.isfinite(error) else None,
        }
        for candidate, error in zip(p["candidates"], errors, strict=True)
    ]
    return Result(meta=select.meta | _selected(mask) | {"chosen": best, "compared": compared})


def _tune(job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None) -> Result:
    p = job.params
    floats = bench.network(job).partition.modules
    modules = _quantized(floats, p["bits"], _states(needs), 0)
    x, target = _full(job, bench, 0), _full(job, bench, len(floats))
    curve, before, after = tuning.tune(
        floats,
        modules,
        x,
        target,
        p["steps"],
        p["rate"],
        p["rounding_rate"],
        p["batch_size"],
        p["seed"],
        Precision(p["precision"]),
        progress,
    )
    return Result(_tensors(modules, 0) | {"curve": curve}, {"error_before": before, "error": after})


def _assemble(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    states: dict[str, Tensor] = {}
    for result in needs:
        states |= {n: t for n, t in result.tensors.items() if n != "curve"}
    data = artifact.pack_network(bench.network(job), states, _layer_bits(job.params))
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    digest = hashlib.sha256(data).hexdigest()
    return Result({"artifact": packed}, {"artifact": digest, "artifact_bytes": len(data)})


@torch.no_grad()
def _evaluate(
    job: Job, bench: Workbench, needs: Sequence[Result], progress: Progress | None
) -> Result:
    network, images = bench.network(job), bench.images(job, "evaluation")
    if not needs:
        return Result(meta={"top1": top1(network, images, job.device), "images": len(images)})
    quantized = artifact.unpack_network(needs[0].tensors["artifact"].numpy().tobytes())
    quantized.to(job.device)
    x = bench.images(job, "calibration").normalized(0, 256).to(job.device)
    losses = oscillation.losses(network.partition.modules, quantized.modules_in_order, x)
    return Result(
        meta={
            "top1": top1(quantized, images, job.device),
            "images": len(images),
            "losses": losses,
            "oscillation": oscillation.oscillation(losses),
            "final_error": losses[-1],
        }
    )


@torch.no_grad()
def top1(
    model: Callable[[Tensor], Tensor], images: ImageSet, device: str = "cpu", batch: int = 250
) -> float:
    """Percentage of images whose largest logit is their label's.

    Raises:
        InputError: there are no images, or labels of no class.
    """
    hits = 0
    images.check_labels(model(images.normalized(0, 1).to(device)).shape[1])
    for x, labels in zip(images.batches(batch), images.labels.split(batch), strict=True):
        hits += int((model(x.to(device)).argmax(1).cpu() == labels).sum())
    return 100 * hits / len(images)


_RUNNERS = {
    Kind.CAPACITY: _capacity,
    Kind.SELECT: _select,
    Kind.RECONSTRUCT: _reconstruct,
    Kind.CORRECT: _correct,
    Kind.CHOOSE: _choose,
    Kind.TUNE: _tune,
    Kind.ASSEMBLE: _assemble,
    Kind.EVALUATE: _evaluate,
}
