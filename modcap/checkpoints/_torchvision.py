"""Imports torchvision where its compiled operators do not load (a CUDA wheel beside a CPU torch).

``import torchvision`` registers meta kernels for ``nms`` and ``qnms`` and fails where the compiled
extension that defines them cannot be loaded. Declaring the two schemas lets the models and the
tensor transforms import; the operators themselves stay unavailable. With matching wheels this
module does nothing but import.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from modcap.core.errors import Unavailable

_SCHEMAS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a library's schemas live as long as the object


@cache
def _import() -> ModuleType:
    try:
        return import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise Unavailable("torchvision is not installed: run pip install torchvision") from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in _SCHEMAS:
        library.define(name + _SIGNATURE)
    _libraries.append(library)
    return import_module("torchvision")


def models() -> ModuleType:
    """``torchvision.models``, whatever the wheel was built for."""
    _import()
    return import_module("torchvision.models")
