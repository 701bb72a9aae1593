"""A network as jobs read it: captured, folded, partitioned; one file without code."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from modcap.core.errors import InputError, Notice
from modcap.core.messages import first_line
from modcap.core.serialization import canonical, digest, metadata_of
from modcap.data.image_set import as_input
from modcap.graph.capture import first_that_works
from modcap.graph.devices import move
from modcap.graph.equivalence import answer, check
from modcap.graph.fold_batch_norm import fold_batch_norms
from modcap.graph.graph_file import GraphFile, parse_header, read_tensors, split
from modcap.graph.graph_json import fill, graph_from_json, graph_to_json, tensors_of
from modcap.graph.outputs import Output, join_values, outputs_field, outputs_of
from modcap.graph.partition import Partition, partition
from modcap.graph.specialize_shapes import more

__all__ = ["Network", "build"]


@dataclass(frozen=True)
class Network:
    """A full-precision network, cut into modules.

    Attributes:
        partition: the chain of modules.
        input_shape: (C, H, W) of the images it takes.
        source: where it comes from, for people; not part of its identity.
        notices: what stays in floating point, for people, too.
        outputs: what tells several outputs apart; empty where there is one.
    """

    partition: Partition
    input_shape: tuple[int, int, int]
    source: Mapping[str, str] = field(default_factory=dict, compare=False)
    notices: tuple[str, ...] = field(default=(), compare=False)
    outputs: tuple[Output, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """What preprocessed images (N, C, H, W) give, such as logits (N, classes), as one tensor;
        see :mod:`modcap.graph.outputs`."""
        return self.partition(x)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the modules."""
        return self.partition.names

    @property
    def layers(self) -> tuple[int, ...]:
        """How many weight layers each module has."""
        return self.partition.layers

    @property
    def float_bytes(self) -> int:
        """Of its weights in float32, batch norms folded: what quantization is compared with."""
        modules = self.partition.modules
        return sum(p.numel() * 4 for module in modules for p in module.parameters())

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """What the model calls the weight layers of each module. A network that was read from a
        file knows only what its graphs call them."""
        return self.partition.paths

    def to(self, device: torch.device) -> Network:
        """A copy on ``device``."""
        modules = tuple(move(copy.deepcopy(module), device) for module in self.partition.modules)
        return replace(self, partition=Partition(modules, self.partition.names))

    def to_bytes(self) -> bytes:
        """safetensors: tensors, and the graphs as JSON in the header; equal for equal networks."""
        header = {
            "graphs": [graph_to_json(module) for module in self.partition.modules],
            "input_shape": self.input_shape,
            "names": self.partition.names,
            **outputs_field(self.outputs),
        }
        tensors = {
            f"{index}.{name}": tensor.detach().clone()
            for index, module in enumerate(self.partition.modules)
            for name, tensor in tensors_of(module).items()
        }
        ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
        return save(ordered, {"network": canonical(header).decode()})

    @cached_property
    def digest(self) -> str:
        """sha256 of :meth:`to_bytes`."""
        return digest(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Network:
        """The inverse of :meth:`to_bytes`, bit-equal in its outputs.

        Raises:
            InputError: the bytes are damaged, or name something other than tensor operations.
        """
        try:
            header = parse_header(GraphFile, _header(data))
            parts = split(read_tensors(data), len(header.graphs))
        except InputError as error:
            raise InputError(f"not a network, or a damaged one ({error})") from None
        modules = [_filled(*given) for given in zip(header.graphs, parts, strict=True)]
        whole = Partition(tuple(modules), tuple(header.names))
        return cls(whole, header.input_shape, outputs=header.outputs)


def _header(data: bytes) -> str:
    try:
        return str(metadata_of(data, "network"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(first_line(error)) from None


def _filled(document: dict[str, Any], tensors: dict[str, Tensor]) -> fx.GraphModule:
    module = graph_from_json(document)
    if tensors_of(module).keys() != tensors.keys():
        raise InputError("a network without some of its tensors, or with others: it is damaged")
    fill(module, tensors)
    return module.eval().requires_grad_(False)


def build(
    model: nn.Module | ExportedProgram,
    example: Tensor,
    source: Mapping[str, str] | None = None,
    strict: bool = False,
) -> Network:
    """Captures, folds and partitions ``model``, which is left as it is.

    What stays in floating point is named in a :class:`~modcap.core.errors.Notice`.

    Args:
        model: in float32, which returns a tensor with a row for each image, or several in a dict
            or tuple; see :func:`modcap.graph.capture.capture`.
        example: (N, C, H, W) preprocessed images, N of at least 2.
        source: recorded with the network.
        strict: refuses what would stay in floating point.

    Raises:
        InputError: the model cannot be captured, partitioned or written without code, holds NaN
            or infinite weights, or what was captured is not the same function.
    """
    example = as_input(example)

    def finish(graph: fx.GraphModule) -> Network:
        channels, height, width = example.shape[1:]
        _check_finite(model)
        notices = tuple(f"{said}; it stays in floating point" for said in graph.meta["notices"])
        found = partition(fold_batch_norms(graph))
        others = more(example)
        value = answer(model, others)
        size, outputs = (channels, height, width), outputs_of(value)
        network = Network(found, size, dict(source or {}), notices, outputs)
        check(Network.from_bytes(network.to_bytes()), model, others, join_values(value))
        return network

    network = first_that_works(model, example, finish, strict)
    for said in network.notices:
        warnings.warn(said, Notice, stacklevel=2)
    return network


@torch.no_grad()
def _check_finite(model: nn.Module | ExportedProgram) -> None:
    """Refuses broken weights; infinity in a buffer may be meant, as in a mask."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        weight = isinstance(tensor, nn.Parameter)
        if tensor.isnan().any() or (weight and tensor.isinf().any()):
            raise InputError(
                f"'{name}' of the model holds NaN or infinity: training diverged, or its file is "
                "damaged; give another one"
            )
