"""The base methods: what a group sees while it is optimised. A new one is a class and a name in
:data:`AnyMethod`.

AdaRound (arXiv 2004.10568), BRECQ (2102.05426, here without its Fisher weighting) and QDrop
(2203.05740); joining groups by capacity (MRECG) works with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field

from modcap.core.named import Named, reading

if TYPE_CHECKING:  # settings are read without waiting for torch
    import torch
    from torch import Tensor

    from modcap.quantization.layers import ActivationQuantizer

__all__ = ["AdaRound", "AnyMethod", "Brecq", "Method", "MethodName", "QDrop", "Rtn"]


class Method(Named):
    """How the weights of a group are rounded, and what the group sees meanwhile.

    Attributes:
        learns: whether it optimises at all; else weights are rounded to nearest.
        needs_capacity: whether joining modules means anything to it.
        quantizes_activations: whether activations are quantized, by scales that learn, while it
            optimises.
    """

    learns: ClassVar[bool] = True
    needs_capacity: ClassVar[bool] = True
    quantizes_activations: ClassVar[bool] = True

    def begin(self, quantizers: Sequence[ActivationQuantizer], generator: torch.Generator) -> None:
        """Prepares the activation quantizers of a group, before its first step."""
        for quantizer in quantizers:
            quantizer.enabled = self.quantizes_activations

    def group_input(
        self, quantized: Tensor, full: Tensor, index: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What the group sees in a step.

        Args:
            quantized: its inputs (N, ...) behind the quantized prefix.
            full: the same in full precision.
            index: of the images of this step (batch,).
            generator: of random choices.
        """
        return quantized[index]


class Rtn(Method):
    """Rounding to nearest: nothing is optimised."""

    name: Literal["rtn"] = "rtn"
    learns: ClassVar[bool] = False
    needs_capacity: ClassVar[bool] = False


class AdaRound(Method):
    """Rounding is optimised with activations in full precision."""

    name: Literal["adaround"] = "adaround"
    quantizes_activations: ClassVar[bool] = False


class Brecq(Method):
    """Activations are quantized while rounding is optimised, and their scales learn too."""

    name: Literal["brecq"] = "brecq"


class QDrop(Method):
    """As BRECQ, but each element of an activation is quantized with a probability only (QDrop,
    eq. 8): inside the group, and in its input."""

    name: Literal["qdrop"] = "qdrop"
    quantize_probability: float = Field(
        0.5, ge=0, le=1, description="probability that an element is quantized"
    )

    def begin(self, quantizers: Sequence[ActivationQuantizer], generator: torch.Generator) -> None:
        super().begin(quantizers, generator)
        for quantizer in quantizers:
            quantizer.quantize_probability = self.quantize_probability
            quantizer.generator = generator

    def group_input(
        self, quantized: Tensor, full: Tensor, index: Tensor, generator: torch.Generator
    ) -> Tensor:
        from modcap.quantization.layers import bernoulli_mask

        x = quantized[index]
        keep = bernoulli_mask(x, self.quantize_probability, generator)
        return full[index].lerp(x, keep)


_Methods = Rtn | AdaRound | Brecq | QDrop

AnyMethod = Annotated[_Methods, Field(discriminator="name"), reading("qdrop")]

MethodName = Enum(  # type: ignore[misc]  # its members are the methods above
    "MethodName",
    {
        method.model_fields["name"].default: method.model_fields["name"].default
        for method in get_args(_Methods)
    },
    type=str,
)
"""The names of the methods, for a command line."""
