"""How images are prepared for an architecture, as those who trained it published it."""

from __future__ import annotations

import math

from modcap.checkpoints import _torchvision
from modcap.checkpoints.architecture import factory_module, split, timm_library
from modcap.core.errors import InputError
from modcap.data.preprocess import EXAMPLE, Preprocess

__all__ = ["published_preprocess"]


def published_preprocess(architecture: str) -> Preprocess:
    """The published transform: of torchvision's default weights, of timm's configuration, or
    the attribute ``PREPROCESS`` of the factory's module.

    Raises:
        InputError: there is none, so the user has to say it.
    """
    if architecture == "pt2":
        raise InputError(f"a .pt2 archive names no preprocessing: pass --preprocess {EXAMPLE}")
    source, name = split(architecture)
    if source == "torchvision":
        return _of_torchvision(name)
    if source == "timm":
        return _of_timm(name)
    found = getattr(factory_module(source), "PREPROCESS", None)
    if not isinstance(found, Preprocess):
        raise InputError(
            f"module {source} has no PREPROCESS: pass --preprocess {EXAMPLE}, or define it"
        )
    return found


def _of_torchvision(name: str) -> Preprocess:
    models = _torchvision.models()
    try:
        weights = models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise InputError(f"--arch torchvision:{name}: torchvision has no such model") from error
    transform = weights.transforms()
    crop = getattr(transform, "crop_size", None)  # none for segmentation
    return Preprocess(
        resize=transform.resize_size[0],
        crop=None if crop is None else crop[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _of_timm(name: str) -> Preprocess:
    config = timm_library().get_pretrained_cfg(name)
    if config is None:
        raise InputError(f"--arch timm:{name} names no preprocessing: pass --preprocess {EXAMPLE}")
    crop = config.input_size[-1]
    found = Preprocess(
        resize=math.floor(crop / config.crop_pct),
        crop=crop,
        interpolation=config.interpolation,
        aspect="squash" if config.crop_mode == "squash" else "keep",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
    if config.crop_mode not in ("center", "squash") or config.input_size[-2] != crop:
        raise InputError(
            f"--arch timm:{name} takes images of {config.input_size[-2]} × {crop}, cropped by "
            f"{config.crop_mode!r}, which is not known here: choose --preprocess, such as '{found}'"
        )
    return found
