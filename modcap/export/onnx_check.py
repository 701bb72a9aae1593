"""The comparison of an ONNX file with its artifact, in onnxruntime.

A value that lies on the edge of a level falls to one side in torch and to the other in a runtime
that sums in another order, and few bits make much of it. So the graph is compared in pieces: cut
at the input of every activation quantizer, each piece gets what torch computed there. Then an
operator that does something else shows at its place, however small, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modcap.core.errors import InputError
from modcap.core.messages import first_line
from modcap.export.artifact import QuantizedNetwork
from modcap.export.onnx_graph import INPUT, Graph
from modcap.graph.outputs import named_values
from modcap.quantization.insert import quantizers

__all__ = ["check_pieces", "compare", "session_of"]

_TOLERANCE = 1e-3  # of the largest value of a tensor


def session_of(data: bytes, where: str, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        InputError: the installed runtime cannot read the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, one for each kind of fault
        raise InputError(
            f"{where}: onnxruntime {onnxruntime.__version__} cannot run it ({first_line(error)}): "
            "it is damaged, or needs a later one (1.25 for the 2-bit types of opset 25; 21 and 13 "
            "do without)"
        ) from None


@torch.no_grad()
def check_pieces(
    graph: Graph, data: bytes, names: Sequence[str], network: QuantizedNetwork, images: Tensor
) -> None:
    """Compares each piece of a graph that is cut.

    Args:
        graph: cut at its activation quantizers.
        data: its model.
        names: of its outputs, in the order of the network's.
        network: the artifact.
        images: (N, C, H, W) that it is compared on.

    Raises:
        InputError: a piece gives something else; the line says where, and by how much.
    """
    seen = _inputs_of_quantizers(network, images)
    calls = [(seen[path].pop(0), computed, name) for path, computed, name in graph.cuts]
    given = {name: value.numpy() for value, _, name in calls}
    session = session_of(data, "the ONNX form")
    wanted = {computed: value for value, computed, _ in calls}
    wanted |= dict(zip(names, _values(network(images)), strict=True))
    found = session.run(list(wanted), {INPUT: images.numpy()} | given)
    for name, value in zip(wanted, found, strict=True):
        expected = wanted[name].numpy()
        error = float(np.abs(value - expected).max() / max(float(np.abs(expected).max()), 1e-12))
        if not error <= _TOLERANCE:
            raise InputError(
                f"the ONNX form differs from the artifact at {name} by {error:.2g} of the largest "
                f"value there (at most {_TOLERANCE:g} is let through): export as pt2 or "
                "safetensors, and report this"
            )


def _inputs_of_quantizers(network: QuantizedNetwork, images: Tensor) -> Mapping[str, list[Tensor]]:
    """What each is called with, call by call."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for index, module in enumerate(network.chain):
        for name, quantizer in quantizers(module)[1].items():

            def note(
                _: nn.Module, inputs: tuple[Tensor, ...], path: str = f"chain.{index}.{name}"
            ) -> None:
                seen.setdefault(path, []).append(inputs[0].clone().contiguous())

            hooks.append(quantizer.register_forward_pre_hook(note))
    network(images)
    for hook in hooks:
        hook.remove()
    return seen


def _values(found: Any) -> list[Tensor]:
    """The outputs, in order."""
    return [torch.as_tensor(value) for _, value in named_values(found)]


@torch.no_grad()
def compare(run: Any, network: QuantizedNetwork, images: Tensor) -> dict[str, Any]:
    """How the outputs of ``run``, a function of images, agree with those of the artifact.

    Several are compared one by one, and ``outputs`` says what came of each. Agreement is that of
    classes, which one output may have.

    Raises:
        InputError: they are not finite, or others.
    """
    expected, found = network(images), _values(run(images))
    named = list(named_values(expected))
    if len(found) != len(named):
        raise InputError(f"the exported form gives {len(found)} outputs, not {len(named)}")
    said = {
        name: _compared(value, wanted, f" {name!r}" if name else "")
        for (name, wanted), value in zip(named, found, strict=True)
    }
    largest = {
        figure: max(each[figure] for each in said.values())
        for figure in ("largest_difference", "largest_logit")
    }
    if network.outputs:
        return {"compared_images": len(images), **largest, "outputs": said}
    same = (found[0].argmax(1) == expected.argmax(1)).float().mean()
    return {"compared_images": len(images), "agreement": 100 * float(same), **largest}


def _compared(found: Tensor, expected: Tensor, name: str) -> dict[str, float]:
    if found.shape != expected.shape or not found.isfinite().all():
        what = f"output{name}" if name else "logits"
        raise InputError(f"the exported form gives no finite {what}: export as safetensors")
    return {
        "largest_difference": float((found - expected).abs().max()),
        "largest_logit": float(expected.abs().max()),
    }
