"""Bits in a recipe: widths for all layers, and for some of them by their names.

``float`` is the name of a field here, so this model stands apart from the others of a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

from modcap.core.messages import wrong_field
from modcap.core.named import Frozen, sparse
from modcap.ptq.bit_policy import BitPolicy, LayerBits

__all__ = ["Allocation", "BitFields"]

_SHORT = re.compile(r"(?:w(?P<w>\d+))?(?:a(?P<a>\d+|none))?")  # of a rule, such as w4a8
_HOW = "give 2 to 8, or w and a, such as {w: 4, a: 8}, or w4a8"


def _or_word(word: str, *others: Any) -> WrapValidator:
    """Takes ``word`` (or one of ``others``, which mean it) in the place of a number."""

    def check(value: Any, number: Callable[[Any], Any]) -> Any:
        if value == word or any(value is other for other in others):
            return word
        if isinstance(value, str) and not value.strip().lstrip("+-").isdecimal():
            raise ValueError(f"Input should be a whole number, or {word}")
        return number(value)

    return WrapValidator(check)


def _read_rules(values: Any) -> Any:
    """Rules as people write them: a mapping, or a list of pairs, of patterns and bits."""
    pairs = values.items() if isinstance(values, Mapping) else values
    try:
        return tuple((pattern, _read_bits(pattern, bits)) for pattern, bits in pairs)
    except (TypeError, ValueError) as error:
        if type(error) is ValueError and str(error).startswith("of "):
            raise
        raise ValueError(
            "give a mapping of patterns of names to bits, such as 'head.*': 8"
        ) from None


def _read_bits(pattern: Any, bits: Any) -> int | LayerBits:
    found = bits
    if isinstance(bits, str):
        match = _SHORT.fullmatch(bits.strip())
        short = match and {name: value for name, value in match.groupdict().items() if value}
        found = int(bits) if bits.strip().isdecimal() else short or None
    if isinstance(found, int) and not isinstance(found, bool) and 2 <= found <= 8:
        return found
    if isinstance(found, LayerBits):
        return found
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"of {pattern!r}: {_HOW} (given: {bits!r})")
    named = {n: "none" if n == "a" and value is None else value for n, value in found.items()}
    try:
        return LayerBits.model_validate(named)
    except ValidationError as error:
        raise ValueError(f"of {pattern!r}: {_HOW} ({wrong_field(error)})") from None


Real = float  # the fields below include one that is called float
WeightBits = Annotated[int | Literal["auto"], Field(ge=2, le=8), _or_word("auto")]
ActivationBits = Annotated[int | Literal["none"], Field(ge=2, le=8), _or_word("none", None)]
_Rules = Annotated[tuple[tuple[str, int | LayerBits], ...], BeforeValidator(_read_rules)]


class Allocation(str, Enum):
    """What the choice of bits goes by."""

    SENSITIVITY = "sensitivity"
    PARAMETERS = "parameters"
    RANDOM = "random"


class BitFields(Frozen):
    """The fields of a recipe that say which layer gets how many bits."""

    w_bits: WeightBits = Field(
        4, description="bits of weights; auto chooses those of each layer within one bound"
    )
    a_bits: ActivationBits = Field(
        4, description="bits of activations, or none: they stay float, and weights alone do not"
    )
    first_last_bits: int = Field(8, ge=2, le=8, description="bits of the first and the last layer")
    bits: _Rules = sparse(
        (),
        description="bits of layers by their names in the model, such as 'head.*=8' or "
        "'blocks.0.*=w8a4'; of several patterns that match, the last one decides",
    )
    float: tuple[str, ...] = sparse(
        (), description="layers that stay float, by their names in the model, such as '*.se.*'"
    )

    budget: Real | None = sparse(
        None,
        ge=2,
        le=8,
        description="w_bits auto: bits of a weight, on average, at most; by default no bound",
    )
    max_bytes: int | None = sparse(
        None, ge=1, description="w_bits auto: bytes of the artifact, at most; by default no bound"
    )
    max_drop: Real | None = sparse(
        None,
        ge=0,
        le=100,
        description="w_bits auto: the smallest network of which no more than this percentage of "
        "answers is predicted to be others than in full precision; by default no bound",
    )
    allocation: Allocation = sparse(
        Allocation.SENSITIVITY,
        description="w_bits auto: bits go where they are missed most, by what each layer alone "
        "costs at each width; or where they cost least, by parameters; or anywhere",
    )
    sensitivity_images: int = sparse(
        128, ge=1, description="calibration images that sensitivities are measured on"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> BitFields:
        bounds = {n: getattr(self, n) for n in ("budget", "max_bytes", "max_drop")}
        given = [name for name, value in bounds.items() if value is not None]
        if self.w_bits == "auto" and len(given) != 1:
            raise ValueError(
                "w_bits auto needs one bound: budget (bits of a weight, on average), max_bytes, or "
                f"max_drop (given: {' and '.join(given) or 'none'})"
            )
        if self.w_bits != "auto" and given:
            raise ValueError(f"{given[0]} is for w_bits auto, which chooses bits within it")
        if self.max_drop is not None and self.allocation is not Allocation.SENSITIVITY:
            raise ValueError("max_drop goes by measured sensitivities: take allocation sensitivity")
        return self

    @property
    def chooses_bits(self) -> bool:
        """Whether a job chooses the bits of weights."""
        return self.w_bits == "auto"

    @property
    def bit_policy(self) -> BitPolicy:
        """Which layer gets how many bits; where they are chosen, 8 stands for what is not known."""
        w_bits = 8 if self.w_bits == "auto" else self.w_bits
        a_bits = 0 if self.a_bits == "none" else self.a_bits
        rules = tuple(
            (pattern, LayerBits(w=bits, a=(bits if a_bits else None)))
            if isinstance(bits, int)
            else (pattern, bits)
            for pattern, bits in self.bits
        )
        return BitPolicy(w_bits, a_bits, self.first_last_bits, rules, self.float)

    @property
    def keeps_float(self) -> bool:
        """Whether anything stays float that usually is quantized."""
        some = any(isinstance(bits, LayerBits) and bits.a == "none" for _, bits in self.bits)
        return some or bool(self.float) or self.a_bits == "none"

    @property
    def bits_label(self) -> str:
        """Such as ``W4A8``, or ``Wauto3.5A4``; activations that stay float have 32 bits."""
        some = "-mixed" if self.bits or self.float else ""
        return f"W{self._weights_label}A{32 if self.a_bits == 'none' else self.a_bits}{some}"

    @property
    def _weights_label(self) -> str:
        if self.budget is not None:
            return f"auto{self.budget:g}"
        if self.max_bytes is not None:
            return f"auto{self.max_bytes}B"
        return str(self.w_bits) if self.max_drop is None else f"auto-drop{self.max_drop:g}"
