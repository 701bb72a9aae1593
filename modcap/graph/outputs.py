"""Outputs: what a network returns beside one tensor, such as a dict of feature maps.

All that quantizes knows one tensor with a row for each image. Several outputs lie side by side in
its columns; their names and shapes are kept, and tell them apart again at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, fx

from modcap.core.errors import InputError

__all__ = [
    "JOIN",
    "Output",
    "join_outputs",
    "join_values",
    "named_values",
    "outputs_field",
    "outputs_of",
    "separate",
]

JOIN = torch.hstack
"""What puts outputs (N, ...), each flattened, side by side; networks themselves concatenate by
other names, so that outputs which only lie in one tensor are told from a concatenation."""

_Size = Annotated[int, Field(ge=1, le=2**31)]


class Output(BaseModel):
    """One of several outputs.

    Attributes:
        name: its key in a dict, its place in a tuple; with dots where they are nested.
        shape: without the number of images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=1000)]
    shape: Annotated[tuple[_Size, ...], Field(max_length=8)]

    @property
    def width(self) -> int:
        """How many numbers it has for each image."""
        return math.prod(self.shape)


def named_values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors, or nodes, in dicts, tuples and lists, each by its name; None is left out."""
    if isinstance(value, Mapping):
        inner: Sequence[tuple[str, Any]] = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, tuple | list):
        inner = [(str(place), part) for place, part in enumerate(value)]
    else:
        if value is not None:
            yield name, value
        return
    for key, part in inner:
        yield from named_values(part, f"{name}.{key}" if name else key)


def join_values(value: Any) -> Any:
    """What a model returned as one tensor: itself, or (N, all numbers) of several."""
    values = [part for _, part in named_values(value)]
    if len(values) == 1:
        return values[0]
    return torch.cat([part.flatten(1) for part in values], 1)


def join_outputs(graph: fx.GraphModule) -> None:
    """Makes ``graph`` return one tensor, as :func:`join_values` does, by :data:`JOIN`.

    Raises:
        InputError: it returns something else than tensors.
    """
    (end,) = [node for node in graph.graph.nodes if node.op == "output"]
    nodes = [node for _, node in named_values(end.args[0])]
    if not nodes or not all(isinstance(node, fx.Node) for node in nodes):
        kind = type(end.args[0]).__name__.removeprefix("immutable_")
        raise InputError(f"the model returns a {kind}: give one that returns tensors")
    if len(nodes) > 1:
        with graph.graph.inserting_before(end):
            rows = [graph.graph.call_function(torch.flatten, (node, 1)) for node in nodes]
            nodes = [graph.graph.call_function(JOIN, (rows,))]
    end.args = (nodes[0],)


def outputs_of(value: Any) -> tuple[Output, ...]:
    """What tells several outputs apart, of what a model returned for some images; of one: none."""
    found = list(named_values(value))
    if len(found) == 1:
        return ()
    return tuple(Output(name=name, shape=tuple(part.shape[1:])) for name, part in found)


def outputs_field(outputs: Sequence[Output]) -> dict[str, Any]:
    """The field of a header that keeps them, where there are several."""
    return {"outputs": [output.model_dump() for output in outputs]} if outputs else {}


def separate(rows: Tensor, outputs: Sequence[Output]) -> Tensor | dict[str, Tensor]:
    """The outputs (N, ...) by name of their ``rows`` (N, all numbers); of no names, the rows."""
    if not outputs:
        return rows
    parts = rows.split([output.width for output in outputs], 1)
    return {
        output.name: part.unflatten(1, output.shape)
        for output, part in zip(outputs, parts, strict=True)
    }
