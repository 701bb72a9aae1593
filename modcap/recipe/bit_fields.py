"""Bits in a recipe: widths for all layers, and for some of them by their names.

``float`` is the name of a field here, so this model stands apart from the others of a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, WrapValidator

from modcap.core.messages import wrong_field
from modcap.core.named import Frozen, sparse
from modcap.ptq.bit_policy import BitPolicy, LayerBits

__all__ = ["BitFields"]

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


WeightBits = Annotated[int | Literal["auto"], Field(ge=2, le=8), _or_word("auto")]
ActivationBits = Annotated[int | Literal["none"], Field(ge=2, le=8), _or_word("none", None)]
_Rules = Annotated[tuple[tuple[str, int | LayerBits], ...], BeforeValidator(_read_rules)]


class BitFields(Frozen):
    """The fields of a recipe that say which layer gets how many bits."""

    w_bits: int = Field(4, ge=2, le=8, description="bits of weights")
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

    @property
    def bit_policy(self) -> BitPolicy:
        """Which layer gets how many bits."""
        a_bits = 0 if self.a_bits == "none" else self.a_bits
        rules = tuple(
            (pattern, LayerBits(w=bits, a=(bits if a_bits else None)))
            if isinstance(bits, int)
            else (pattern, bits)
            for pattern, bits in self.bits
        )
        return BitPolicy(self.w_bits, a_bits, self.first_last_bits, rules, self.float)

    @property
    def keeps_float(self) -> bool:
        """Whether anything stays float that usually is quantized."""
        some = any(isinstance(bits, LayerBits) and bits.a == "none" for _, bits in self.bits)
        return some or bool(self.float) or self.a_bits == "none"

    @property
    def bits_label(self) -> str:
        """Such as ``W4A8``; activations that stay float have 32 bits."""
        some = "-mixed" if self.bits or self.float else ""
        return f"W{self.w_bits}A{32 if self.a_bits == 'none' else self.a_bits}{some}"
