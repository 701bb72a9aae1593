"""What jobs behind others see: full-precision activations, and those behind a quantized prefix.

Neither is stored or shipped: a job computes them again, or goes on from the nearest boundary whose
activations its worker keeps. The result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from modcap.core.serialization import Result
from modcap.graph.forward import concatenate_to, run_batched
from modcap.jobs.job import Job
from modcap.jobs.worker_cache import WorkerCache
from modcap.quantization.bits import Bits
from modcap.quantization.insert import device_of, insert_quantizers, restore, state_of
from modcap.quantization.scheme import USUAL, Scheme

__all__ = ["full_precision", "quantized_modules", "states_of", "tensors_of_modules"]


def full_precision(job: Job, cache: WorkerCache, stop: int, count: int | None = None) -> Tensor:
    """The full-precision activations (N, ...) in front of module ``stop``, of the first ``count``
    calibration images, or all."""
    place = job.device, job.threads, job.inputs["network"], job.inputs["calibration"], count
    passes = job.passes
    for at in range(stop, -1, -1):
        x = cache.activations.get((*place, at))
        if x is not None:
            break
    else:
        images = cache.images(job.inputs["calibration"])
        images = images if count is None else images.first(count)
        parts = (part.to(job.device) for part in images.batches(passes.images))
        at, x = 0, concatenate_to(parts, len(images), passes.limit)
    modules = cache.network(job.inputs["network"], job.device).partition.modules
    x = run_batched(modules[at:stop], x, passes)
    cache.activations.put((*place, stop), x, job.room.activation_bytes)
    return x


def states_of(results: Sequence[Result]) -> dict[int, dict[str, Tensor]]:
    """The states of modules, by their index, that earlier jobs left."""
    states: dict[int, dict[str, Tensor]] = {}
    for result in results:
        for name, tensor in result.tensors.items():
            index, _, rest = name.partition(".")
            if rest:  # all but the curve
                states.setdefault(int(index), {})[rest] = tensor
    return states


def quantized_modules(
    floats: Sequence[Any],
    bits: Sequence[Sequence[Bits]],
    states: Mapping[int, dict[str, Tensor]],
    start: int = 0,
    scheme: Scheme = USUAL,
) -> list[nn.Module]:
    """Modules from ``start`` on, one for each entry of ``bits``, in the given states."""
    modules: list[nn.Module] = []
    for index, module_bits in enumerate(bits, start):
        last = index == len(floats) - 1
        module = insert_quantizers(floats[index], module_bits, scheme, last)
        device = device_of(floats[index])
        state = states.get(index, {})  # none, where all of a module stays float
        restore(module, {name: tensor.to(device) for name, tensor in state.items()})
        modules.append(module)
    return modules


def tensors_of_modules(modules: Sequence[nn.Module], start: int = 0) -> dict[str, Tensor]:
    """The states of ``modules``, the first of which has the index ``start``."""
    return {
        f"{index}.{name}": tensor.cpu()
        for index, module in enumerate(modules, start)
        for name, tensor in state_of(module)
    }
