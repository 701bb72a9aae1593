"""Which names may become part of the Python source that torch.fx generates from a graph."""

from __future__ import annotations

import keyword
import re
import unicodedata

from torch import nn

__all__ = ["is_identifier", "is_path"]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PART = re.compile(r"[\w-]+")
_LONGEST = 500
_IN_SOURCE = {  # what the generated source itself refers to
    *("self", "torch", "math", "operator", "_operator", "builtins", "getattr", "slice", "device"),
    *("inf", "nan", "NoneType", "fx_pytree", "pytree", "Ellipsis", "range", "wrap", "annotate"),
}


def is_identifier(name: object) -> bool:
    """Whether ``name`` can stand for a value in generated source, and for nothing else."""
    return (
        isinstance(name, str)
        and len(name) <= _LONGEST
        and _IDENTIFIER.fullmatch(name) is not None
        and not keyword.iskeyword(name)
        and not _is_dunder(name)
        and name not in _IN_SOURCE
    )


def is_path(name: object) -> bool:
    """Whether ``name`` is the dotted path of a module or a tensor: identifiers, numbers, hyphens;
    none of them an attribute that modules have, or one of two spellings that Python takes as one.
    """
    return isinstance(name, str) and len(name) <= _LONGEST and all(map(_is_part, name.split(".")))


def _is_part(part: str) -> bool:
    return (
        _PART.fullmatch(part) is not None
        and unicodedata.normalize("NFKC", part) == part
        and not keyword.iskeyword(part)
        and not _is_dunder(part)
        and not hasattr(nn.Module, part)
    )


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
