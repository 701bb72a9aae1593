"""Weights outside of layers: products of images with parameters, in whatever way they are written.

They stay in full precision, which is said before anything is built on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from modcap.graph.fold_constants import SOURCES
from modcap.graph.nodes import WEIGHT_LAYERS, place

__all__ = ["loose_weights"]

_PRODUCTS = (  # what matmul, einsum, tensordot, attention, recurrent layers, … come down to
    *("mm", "bmm", "mv", "dot", "vdot", "addmm", "addbmm", "baddbmm", "addmv"),
    *("convolution", "conv_tbc", "_trilinear"),
)
_SUMS = (torch.ops.aten.sum.dim_IntList, torch.ops.aten.mean.dim)
_IMAGES = ""  # in the place of a parameter's name


def loose_weights(graph: fx.GraphModule, images: Tensor, program: bool) -> list[str]:
    """Runs ``graph`` on images (n, C, H, W), and looks at what is multiplied.

    Returns:
        a line for each parameter that is multiplied with what depends on the images, as a matrix
        and outside of a layer; ``program`` is whether the graph comes from a ``.pt2``.
    """
    products = _Products(graph, program)
    products.run(images)
    return list(products.found.values())


class _Products(fx.Interpreter):
    """Runs a graph and finds weights outside of layers, which stay in full precision: a parameter
    that an image is multiplied with, as it is or transposed, say."""

    def __init__(self, graph: fx.GraphModule, program: bool) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.found: dict[str, str] = {}
        self._operators = _Operators(graph)
        self._mend = ", and export without run_decompositions()" if program else ""

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if n.op == "placeholder" or isinstance(layer, WEIGHT_LAYERS):
            value = super().run_node(n)
            self._operators.made_of[value] = _IMAGES
            return value
        with self._operators:
            value = super().run_node(n)
        weight, self._operators.weight = self._operators.weight, ""
        if weight:
            self.found.setdefault(
                weight,
                f"'{weight}' is multiplied at {place(n)} without a layer that can be quantized: "
                f"make it the weight of an nn.Linear or a convolution{self._mend}",
            )
        return value


class _Operators(TorchDispatchMode):
    """Follows through the operators that run what depends on parameters, and what on images.

    Attributes:
        made_of: the parameter that a tensor depends on, or ``_IMAGES``.
        weight: the parameter that an image was multiplied with, as with a matrix.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made_of = WeakTensorKeyDictionary()
        self.weight = ""
        self._scales = WeakTensorKeyDictionary()  # of the products element by element
        folded = graph.meta.get(SOURCES, {})
        for name, parameter in graph.named_parameters():
            if parameter.ndim > 1:
                self.made_of[parameter] = folded.get(name, name)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        weights = self._weights(_factors(func, args))
        if func in _SUMS and self._sums_a_matrix(args[0], args[1]):
            weights = [self._scales[args[0]]]
        if weights and func is torch.ops.aten.mul.Tensor:
            self._scales[result] = weights[0]
        elif weights:
            self.weight = self.made_of[weights[0]]
        sources = [self.made_of[t] for t in self._known((args, kwargs))]
        for value in tree_leaves(result):
            if sources and isinstance(value, Tensor):
                self.made_of[value] = _IMAGES if _IMAGES in sources else sources[0]
        return result

    def _known(self, values: Any) -> list[Tensor]:
        return [v for v in tree_leaves(values) if isinstance(v, Tensor) and v in self.made_of]

    def _weights(self, factors: tuple[Any, ...]) -> list[Tensor]:
        """Those of the factors that depend on parameters alone, if others depend on images."""
        known = self._known(factors)
        weights = [factor for factor in known if self.made_of[factor] != _IMAGES]
        return weights if len(weights) < len(known) else []

    def _sums_a_matrix(self, product: Tensor, dims: list[int] | None) -> bool:
        """Whether a sum of images times a scale runs over a part of the scale's dimensions, so
        that a matrix product is spelled out."""
        if product not in self._scales:
            return False
        scale = self._scales[product].expand_as(product)
        dims = [d % product.ndim for d in dims or range(product.ndim)]
        varies = [d in dims for d in range(product.ndim) if scale.stride(d) and scale.size(d) > 1]
        return any(varies) and not all(varies)


def _factors(func: OpOverload, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What ``func`` multiplies: neither what it adds to the product, nor a mask."""
    name = func.overloadpacket.__name__
    if func is torch.ops.aten.mul.Tensor or name.startswith("_scaled_dot_product"):
        return args[:3]
    return args[name.startswith(("add", "badd")) :][:3] if name in _PRODUCTS else ()
