"""What happens to an image before the network: resize, crop, normalisation.

Accuracy depends on it (another resize or interpolation costs tenths of a point, another
normalisation everything), so it comes from the architecture's published transform where there is
one, and is recorded with every result.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from modcap.core import documents
from modcap.core.errors import InputError
from modcap.core.messages import wrong_field

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXAMPLE", "Preprocess"]

EXAMPLE = "'mean=0.286,std=0.353' or 'resize=256,crop=224,mean=0.485/0.456/0.406,std=…'"
_BRIGHTEST = 255.0
_ROUNDING = 1e-3  # of float images, beyond 0 to 1
_LARGEST = 3.0  # of mean and std for pixels of 0 to 1; those for 0 to 255 are in the tens


class Preprocess(BaseModel):
    """Resize the shorter side, cut out the centre, scale to 0 to 1, subtract mean, divide by std.

    ``resize`` and ``crop`` are in pixels and apply to image files; arrays are taken as they are.
    ``mean`` and ``std`` have one value per channel, for pixels of 0 to 1. Those for pixels of 0 to
    255 are written with ``scale=255``, and become such of 0 to 1. ``range=any`` is for arrays of
    float32 that are beyond 0 to 1, such as normalised ones: ``mean`` and ``std`` apply to them as
    they are. ``aspect=squash`` resizes both sides to ``resize``, whatever their ratio.

    Example:
        >>> str(Preprocess.parse("crop=224,mean=0.5,std=0.25"))
        'crop=224,mean=0.5,std=0.25'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int | None = None
    crop: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    aspect: Literal["keep", "squash"] = "keep"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: Literal["unit", "any"] = "unit"

    @model_validator(mode="before")
    @classmethod
    def _of_scale(cls, fields: Any) -> Any:
        """``scale`` is no field: it says what mean and std are for."""
        if not isinstance(fields, dict) or "scale" not in fields:
            return fields
        rest = {name: value for name, value in fields.items() if name != "scale"}
        if str(fields["scale"]) not in ("1", "255"):
            raise ValueError("scale is 1 or 255, what the brightest pixel counts for")
        if str(fields["scale"]) == "255":
            _check_units(fields)
            rest |= {name: _divided(rest[name]) for name in ("mean", "std") if name in rest}
        return rest

    @model_validator(mode="after")
    def _check(self) -> Preprocess:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError("mean and std need one value per channel each")
        if not all(math.isfinite(m) for m in self.mean):
            raise ValueError("mean must be finite")
        if not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ValueError("std must be finite and above 0")
        if self.range == "unit":
            self._check_scale()
        if any(size is not None and size < 1 for size in (self.resize, self.crop)):
            raise ValueError("resize and crop must be at least 1")
        if self.aspect == "squash" and self.resize is None:
            raise ValueError("aspect=squash is for resize: say to which size")
        return self

    def _check_scale(self) -> None:
        beyond = [v for v in (*self.mean, *self.std) if v > _LARGEST]
        if beyond or min(self.mean) < -_LARGEST:
            value = beyond[0] if beyond else min(self.mean)
            raise ValueError(
                f"{value:g} is no mean or std of pixels of 0 to 1: add scale=255 where it is for "
                f"pixels of 0 to 255"
            )

    def __str__(self) -> str:
        """As :meth:`parse` takes it."""
        shown = self.model_dump(exclude_defaults=True)
        return ",".join(
            f"{name}={'/'.join(map(repr, value)) if isinstance(value, tuple) else value}"
            for name, value in shown.items()
        )

    @property
    def channels(self) -> int:
        return len(self.mean)

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Reads ``imagenet``, the name of a JSON or YAML file, or a short text.

        Raises:
            InputError: the text is none of these.
        """
        if text == "imagenet":
            return _IMAGENET
        if text.endswith((".json", ".yaml", ".yml")):
            return _validated(documents.read(Path(text), f"--preprocess {text}"), text)
        return cls.written(text)

    @classmethod
    def written(cls, text: str) -> Preprocess:
        """The inverse of ``str``: for what a file or a registry says, which names no other file.

        Raises:
            InputError: the text is something else.
        """
        fields = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        if not fields or len(fields) != text.count(",") + 1:
            raise InputError(f"--preprocess {text!r} is not understood: write {EXAMPLE}")
        lists = {name: fields[name].split("/") for name in ("mean", "std") if name in fields}
        return _validated({**fields, **lists}, text)

    def check_values(self, images: NDArray[Any] | Tensor, where: str) -> None:
        """Refuses pixels that :meth:`normalize` would take for others.

        Raises:
            InputError: they are beyond 0 to 1 and ``range`` does not say so, or are not finite.
        """
        if str(images.dtype).endswith("uint8"):  # of NumPy or of torch
            if self.range == "any":
                raise InputError(f"{where}: range=any is for float32, and these are uint8")
            return
        ends = (0.0, 0.0) if 0 in images.shape else (float(images.min()), float(images.max()))
        for end in ends:
            if not math.isfinite(end):
                raise InputError(f"{where}: float32 images reach {end:g}: mend or leave them out")
        if self.range == "unit" and (ends[0] < -_ROUNDING or ends[1] > 1 + _ROUNDING):
            raise InputError(
                f"{where}: float32 images reach from {ends[0]:g} to {ends[1]:g}: scale them to 0 "
                f"to 1, store uint8, or add range=any to --preprocess, whose mean and std then "
                f"apply to them as they are (mean=0,std=1 where they are normalised)"
            )

    def normalize(self, images: NDArray[Any] | Tensor) -> Tensor:
        """Images as the network takes them.

        Args:
            images: (N, C, H, W), uint8 (0 to 255) or float32 (0 to 1; with range any, all).

        Returns:
            (N, C, H, W) float32.
        """
        import torch

        self.check_values(images, "these images")
        x = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (x - mean[:, None, None]) / std[:, None, None]


def _check_units(fields: dict[str, Any]) -> None:
    """Refuses ``scale=255`` beside what it would divide, and was not meant for."""
    if fields.get("range") == "any":
        raise ValueError("range=any takes mean and std as they are: leave out scale=255")
    means, stds = (_numbers(fields.get(name)) for name in ("mean", "std"))
    if any(0 < abs(mean) <= 1 for mean in means) or any(0 < std < 1 for std in stds):
        raise ValueError(
            "scale=255 is for mean and std of pixels of 0 to 255, and these are for 0 to 1: leave "
            "it out"
        )


def _numbers(values: Any) -> list[float]:
    """What is no number is refused later, by name."""
    listed = values if isinstance(values, list | tuple) else [values]
    try:
        return [float(value) for value in listed]
    except (TypeError, ValueError, OverflowError):
        return []


def _divided(values: Any) -> Any:
    """Of pixels of 0 to 255, for pixels of 0 to 1; what is no number is refused later, by name."""
    try:
        if isinstance(values, list | tuple):
            return [float(value) / _BRIGHTEST for value in values]
        return float(values) / _BRIGHTEST
    except (TypeError, ValueError, OverflowError):
        return values


_IMAGENET = Preprocess(resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _validated(fields: Any, text: str) -> Preprocess:
    try:
        return Preprocess.model_validate(fields)
    except ValidationError as error:
        said = wrong_field(error)
        raise InputError(f"--preprocess {text!r}: {said}; write {EXAMPLE}") from error
