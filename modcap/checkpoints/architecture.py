"""Builds the network that a checkpoint's weights belong to, from the name of its architecture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from modcap.checkpoints import _torchvision, arch_options, key_names
from modcap.checkpoints.stored_in_parts import join
from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.core.user_code import user_module

__all__ = ["Factory", "build", "factory_module", "published", "split"]

Factory = Callable[..., nn.Module]

_HOW = "use torchvision:NAME, timm:NAME or package.module:factory"
_INCEPTION = ("googlenet", "inception_v3")  # torchvision's networks with auxiliary classifiers
_NO_AUXILIARY = "lraspp"  # of torchvision's segmentation networks
_AUXILIARY = re.compile(r"(?:^|\.)(?:aux\d|AuxLogits|aux_classifier)\.")
_LIBRARIES = ("torchvision", "timm")


def split(architecture: str) -> tuple[str, str]:
    """``"torchvision:resnet18"`` as ``("torchvision", "resnet18")``, without options."""
    source, colon, name = arch_options.parse(architecture).base.partition(":")
    if not (source and colon and name):
        raise InputError(f"--arch {architecture!r} is not an architecture: {_HOW}")
    return source, name


def published(architecture: str) -> bool:
    """Whether it is one of torchvision or timm, so that naming it chooses no code of one's own."""
    return split(architecture)[0] in _LIBRARIES


def build(architecture: str, weights: Mapping[str, Tensor], kind: str | None = None) -> nn.Module:
    """The network for ``weights``, itself with random ones, in float32.

    The number of classes is read off the rows of the last weight where the factory takes
    ``num_classes``. The caller's random state is left as it was.

    Args:
        weights: under whatever names.
        kind: ``raw`` or ``ema``, where there are both.

    Raises:
        InputError: there is no such architecture, or it cannot be built.
    """
    source, name = split(architecture)
    named = arch_options.parse(architecture)
    factory = _factory(source, name, weights)
    arch_options.check(named, source, name, factory)
    options = dict(named.options)
    with torch.random.fork_rng(devices=[]):
        model = _call(factory, architecture, **options)
        classes = _classes(model, _own(model, weights, kind))
        if classes is not None and _takes_classes(source, factory):
            model = _call(factory, architecture, **{"num_classes": classes, **options})
    return model


def _own(model: nn.Module, weights: Mapping[str, Tensor], kind: str | None) -> dict[str, Tensor]:
    """``weights`` under the names of ``model``."""
    names = model.state_dict().keys()
    return key_names.as_expected(join(weights, names).tensors, names, kind).entries


def _classes(model: nn.Module, weights: Mapping[str, Tensor]) -> int | None:
    """Rows of the checkpoint's last weight, None where the network has as many already."""
    state = model.state_dict().items()  # which may hold more than tensors
    matrices = [(key, t) for key, t in state if isinstance(t, Tensor) and t.ndim > 1]
    if not matrices or matrices[-1][0] not in weights:
        return None
    key, tensor = matrices[-1]
    rows, columns = weights[key].shape[:1], weights[key].shape[1:]
    if columns != tensor.shape[1:] or rows == tensor.shape[:1] or not weights[key].numel():
        return None  # of another network: what does not fit is named later
    return int(rows[0])


def _takes_classes(source: str, factory: Factory) -> bool:
    if source in _LIBRARIES:
        return True
    return "num_classes" in inspect.signature(factory).parameters


def _call(factory: Factory, architecture: str, **options: Any) -> nn.Module:
    try:
        model = factory(**options)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--arch {architecture} cannot be built ({type(error).__name__}: {first_line(error)}): "
            f"it must be callable without arguments, or with the options that are given"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--arch {architecture} returns {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _factory(source: str, name: str, weights: Mapping[str, Tensor]) -> Factory:
    if source == "torchvision":
        return _torchvision_factory(name, weights)
    if source == "timm":
        return _timm_factory(name)
    factory = getattr(factory_module(source), name, None)
    if not callable(factory):
        raise InputError(f"--arch {source}:{name}: module {source} has no factory {name!r}")
    found: Factory = factory
    return found


def _torchvision_factory(name: str, weights: Mapping[str, Tensor]) -> Factory:
    models = _torchvision.models()
    segmentation = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *segmentation]
    if name not in known:
        raise InputError(
            f"--arch torchvision:{name}: torchvision has no such classifier, and no such "
            f"segmentation network{_hint(name, known)}"
        )

    def build_one(**options: Any) -> nn.Module:
        auxiliary = any(map(_AUXILIARY.search, weights))
        if name in _INCEPTION:
            options |= {"aux_logits": auxiliary, "init_weights": False}
        if name in segmentation:
            options |= {"weights_backbone": None}
            options |= {"aux_loss": auxiliary} if not name.startswith(_NO_AUXILIARY) else {}
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    return build_one


def _timm_factory(name: str) -> Factory:
    timm = timm_library()
    if not timm.is_model(name):
        known = timm.list_models()
        raise InputError(f"--arch timm:{name}: timm has no such model{_hint(name, known)}")

    def build_one(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return build_one


def timm_library() -> Any:
    """The module ``timm``, which imports torchvision."""
    _torchvision.models()
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise Unavailable(
            "--arch timm:… needs timm, not installed: run pip install timm"
        ) from error


def factory_module(module: str) -> Any:
    """Imports the user's ``module``, from the working directory too."""
    return user_module(module, f"--arch {module}:…", _HOW)


def _hint(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    return f": did you mean {', '.join(close)}?" if close else f": {_HOW}"
