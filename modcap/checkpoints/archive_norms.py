"""Batch norms of decomposed archives: the operator does not check what it is given."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram

__all__ = ["check_norms"]

_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


def check_norms(program: ExportedProgram) -> None:
    """Refuses a batch norm whose statistics are not one number for each channel: what lies beyond
    them in memory would be read. Shapes are computed without tensors.

    Raises:
        ValueError: there is such a one.
    """
    if not any(node.target is _NORM for node in program.graph.nodes):
        return
    inputs = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    mode = detect_fake_mode(inputs)
    if mode is None:
        raise ValueError("a batch norm of inputs without shapes")
    with mode, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _Norms(program.graph_module).run(*inputs)


class _Norms(fx.Interpreter):
    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is _NORM:
            source, *stored = args[:5]
            sizes = [tuple(value.shape) for value in stored if isinstance(value, Tensor)]
            channels = (int(source.shape[1]),)
            if len(args) < 5 or any(size != channels for size in sizes):
                raise ValueError("a batch norm without a number for each channel")
        return super().call_function(target, args, kwargs)
