"""Which layer gets how many bits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, model_serializer

from modcap.core.errors import InputError
from modcap.core.named import Frozen
from modcap.quantization.bits import FLOAT, Bits

__all__ = ["BitPolicy", "LayerBits", "Rule"]

_NEAREST = 3  # names that a message shows


class _Chain(Protocol):
    """A partition, a network or an outline."""

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]: ...


class LayerBits(Frozen):
    """What a rule says of a layer: bits of its weights, and of its input, which ``none`` leaves
    float; what a rule does not say stays as it is."""

    w: int | None = Field(None, ge=2, le=8)
    a: Annotated[int, Field(ge=2, le=8)] | Literal["none"] | None = None

    def over(self, bits: Bits) -> Bits:
        """``bits``, and what this rule says of them."""
        activation = 0 if self.a == "none" else self.a
        return Bits(
            bits.weight if self.w is None else self.w,
            bits.activation if activation is None else activation,
        )

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any]:
        return {name: value for name, value in (("w", self.w), ("a", self.a)) if value is not None}


Rule = tuple[str, LayerBits]
"""A pattern of names, and the bits of the layers that it matches."""


@dataclass(frozen=True)
class BitPolicy:
    """One width for weights and one for activations, one for the first and the last layer, and
    rules for layers by their names.

    A pattern (``*``, ``?`` and ``[…]`` as in names of files; ``*`` also matches dots) matches a
    layer by its own path in the model, or by that of a module around it. Of several rules that
    match a layer, the last one decides; ``floats`` come before all rules. Jobs and artifacts carry
    the bits of each layer, so another policy changes this class alone.

    Attributes:
        weights: bits of weights.
        activations: bits of what weight layers read; 0 stays float.
        first_last: bits of the first and the last layer; of weights alone where activations stay
            float.
        rules: bits by pattern.
        floats: patterns of layers that stay float.

    Example:
        >>> from types import SimpleNamespace
        >>> chain = SimpleNamespace(paths=(("stem",), ("block.one", "block.two"), ("head",)))
        >>> BitPolicy(4, 4, 8, (("block.*", LayerBits(w=2)),), ("*.two",)).resolve(chain)[1]
        [Bits(weight=2, activation=4), Bits(weight=0, activation=0)]
    """

    weights: int
    activations: int
    first_last: int
    rules: tuple[Rule, ...] = ()
    floats: tuple[str, ...] = ()

    def resolve(self, modules: _Chain) -> list[list[Bits]]:
        """The bits of each weight layer of each module.

        Raises:
            InputError: a pattern matches no layer, or all stay float.
        """
        paths = modules.paths
        self._check(paths)
        usual = Bits(self.weights, self.activations)
        bits = [[usual] * len(own) for own in paths]
        bits[0][0] = bits[-1][-1] = Bits(self.first_last, self.activations and self.first_last)
        resolved = [
            [self._ruled(path, own) for path, own in zip(names, widths, strict=True)]
            for names, widths in zip(paths, bits, strict=True)
        ]
        if all(own == FLOAT for widths in resolved for own in widths):
            raise InputError("float: all layers stay float, and nothing is left to quantize")
        return resolved

    def _ruled(self, path: str, bits: Bits) -> Bits:
        if any(_matches(path, pattern) for pattern in self.floats):
            return FLOAT
        for pattern, said in self.rules:
            if _matches(path, pattern):
                bits = said.over(bits)
        return bits

    def candidates(self, modules: _Chain, widths: Sequence[int]) -> list[list[tuple[Bits, ...]]]:
        """The bits that each weight layer of each module may get: one, where a rule says them or it
        stays float; else one for each of ``widths``, activations as they are."""
        return [
            [
                (own,) if self._fixes(path) else tuple(Bits(w, own.activation) for w in widths)
                for path, own in zip(names, bits, strict=True)
            ]
            for names, bits in zip(modules.paths, self.resolve(modules), strict=True)
        ]

    def _fixes(self, path: str) -> bool:
        said = [pattern for pattern, bits in self.rules if bits.w is not None]
        return any(_matches(path, pattern) for pattern in (*said, *self.floats))

    def _check(self, paths: Sequence[Sequence[str]]) -> None:
        layers = [path for own in paths for path in own]
        for field, patterns in (("bits", [p for p, _ in self.rules]), ("float", self.floats)):
            for pattern in patterns:
                if not any(_matches(path, pattern) for path in layers):
                    raise InputError(
                        f"{field}: {pattern!r} matches no convolution and no linear layer; "
                        f"{_nearest(pattern, layers)}"
                    )


def _and_around(path: str) -> list[str]:
    """A path, and those of the modules around it, the nearest first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _matches(path: str, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in _and_around(path))


def _nearest(pattern: str, layers: Iterable[str]) -> str:
    """The names that are most like a pattern."""
    names = list(dict.fromkeys(name for layer in layers for name in _and_around(layer)))
    plain = pattern.replace("*", "").strip(".")
    found = difflib.get_close_matches(plain, names, _NEAREST, 0.4) or names[:_NEAREST]
    return f"names near it: {', '.join(found)}"
