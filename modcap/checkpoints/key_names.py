"""Names in state dicts that training scripts, or older versions of a library, gave otherwise."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

__all__ = ["as_expected", "common_prefix"]

_UNUSED = "num_batches_tracked"  # no part of inference
_OLD = (  # of torchvision, whose networks once had these names
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def as_expected(tensors: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """``tensors`` under the names of a network, ``expected``, where they are known to be its own.

    A prefix is taken off (``model.`` of Lightning, say) where one alone leaves all that the network
    needs; what has no such prefix, such as a loss, is left out. Otherwise they are as they were.
    """
    needed = {name for name in expected if not name.endswith(_UNUSED)}
    if needed <= tensors.keys():
        return dict(tensors)
    renamed = {_today(name): tensor for name, tensor in tensors.items()}
    if needed <= renamed.keys():
        return renamed
    fitting = []
    for prefix in _prefixes(renamed, needed):
        own = {n.removeprefix(prefix): t for n, t in renamed.items() if n.startswith(prefix)}
        if needed <= own.keys():
            fitting.append(own)
    return fitting[0] if len(fitting) == 1 else dict(tensors)


def common_prefix(names: Collection[str]) -> str:
    """What all of ``names`` begin with, up to a point: empty, or such as ``net.encoder.``."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(f"{column[0]}.")
    return "".join(shared)


def _today(name: str) -> str:
    for old, new in _OLD:
        name = old.sub(new, name)
    return name


def _prefixes(names: Collection[str], needed: Collection[str]) -> list[str]:
    """Those that stand in front of one needed name."""
    one = min(needed, default="")
    found = {name.removesuffix(one) for name in names if one and name.endswith(f".{one}")}
    return sorted(found)
