"""A call of an operator, as the functions that write it to ONNX see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from modcap.core.errors import InputError
from modcap.export.onnx_graph import Graph

__all__ = ["OPERATORS", "Call", "Size", "Write", "operator"]

Size = int | torch.SymInt
Write = Callable[[Graph, "Call"], str | list[str]]
OPERATORS: dict[OpOverload, Write] = {}
"""The operators that ONNX files are made of, and what writes each."""


def operator(*targets: OpOverload) -> Callable[[Write], Write]:
    """Registers a function that writes calls of ``targets``."""

    def register(write: Write) -> Write:
        OPERATORS.update(dict.fromkeys(targets, write))
        return write

    return register


class Call:
    """One call: ``call["dim"]`` is an argument as torch has it, ``call.name("self")`` the ONNX
    value of a tensor.

    Attributes:
        node: the call in the graph of ATen operators.
    """

    def __init__(self, graph: Graph, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        self.node = node
        self._graph = graph
        self._values = values
        arguments = cast(OpOverload, node.target)._schema.arguments
        self._given = {a.name: a.default_value for a in arguments if a.has_default_value()}
        names = [argument.name for argument in arguments]
        self._given |= dict(zip(names, node.args, strict=False)) | node.kwargs

    def __getitem__(self, argument: str) -> Any:
        return self._given[argument]

    def refused(self, why: str) -> InputError:
        """One line that names operator and place."""
        place = self._graph.place or f"node '{self.node.name}'"
        return InputError(
            f"{self.node.target} at {place} has no ONNX form here ({why}): export the artifact as "
            "pt2 or safetensors"
        )

    def get(self, argument: str) -> Any:
        """What is given for an argument; None where the operator has no such."""
        return self._given.get(argument)

    def __contains__(self, argument: str) -> bool:
        return argument in self._given

    def read(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of a tensor or number, as ``dtype`` where one is given."""
        if not isinstance(value, fx.Node):
            return self._graph.constant(torch.tensor(value, dtype=dtype))
        held = self._values[value]
        if isinstance(held, Tensor):
            return self._graph.constant(held.to(dtype) if dtype else _storable(held))
        name: str = held
        other = dtype is not None and dtype != value.meta["val"].dtype
        return self._graph.cast(name, cast(torch.dtype, dtype)) if other else name

    def name(self, argument: str) -> str:
        return self.read(self[argument])

    def held(self, value: Any) -> Any:
        """What is known of a value: a tensor where it depends on no image."""
        return self._values.get(value)

    @property
    def shape(self) -> tuple[Size, ...]:
        """Of the (first) result."""
        value = self.node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        return tuple(value.shape)

    def shape_of(self, argument: str) -> tuple[Size, ...]:
        return tuple(self[argument].meta["val"].shape)

    def sizes_of(self, argument: str, start: int) -> list[int]:
        """The sizes of the dimensions from ``start`` on, which no number of images changes."""
        sizes = self.shape_of(argument)[start:]
        if not all(isinstance(size, int) for size in sizes):
            raise self.refused("it works across images")
        return cast("list[int]", list(sizes))

    def reshape(self, x: str, shape: Sequence[Size]) -> str:
        """x in another shape: a dimension that grows with the images is left to the runtime."""
        free = [size for size in shape if not isinstance(size, int)]
        if len(free) > 1 or (free and 0 in shape):
            return self._graph.add("Reshape", x, self.dynamic(shape))
        plain = [size if isinstance(size, int) else -1 for size in shape]
        return self._graph.add("Reshape", x, self._graph.constant(torch.tensor(plain)))

    def dynamic(self, shape: Sequence[Size]) -> str:
        """``shape`` as an int64 tensor, computed from the number of images."""
        if all(isinstance(size, int) for size in shape):
            return self._graph.constant(torch.tensor([int(size) for size in shape]))
        parts = [
            self._graph.constant([size])
            if isinstance(size, int)
            else self._graph.batch_size(self._factor(size))
            for size in shape
        ]
        return self._graph.add("Concat", *parts, axis=0)

    def _factor(self, size: torch.SymInt) -> int:
        expression = size.node.expr
        (symbol,) = expression.free_symbols
        factor = expression / symbol
        if not factor.is_Integer:
            raise self.refused(f"a size of {expression}")
        return int(factor)


def _storable(tensor: Tensor) -> Tensor:
    known = (torch.float32, torch.int64, torch.bool, torch.int32, torch.uint8)
    return tensor if tensor.dtype in known else tensor.float()
