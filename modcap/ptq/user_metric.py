"""A metric of the user's own: a function that is imported by its name.

It is called as ``function(network, full, batches)`` and returns a number. ``network`` and ``full``
(full precision) map images (n, C, H, W), preprocessed, to what the model returns: a tensor, or
several in a dict by name. ``batches`` gives pairs of such images and their labels (n, ...), or
None. It may have attributes ``title`` (of its figure, with the unit) and ``higher_is_better``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line
from modcap.core.user_code import user_module
from modcap.data.image_set import ImageSet
from modcap.graph.outputs import Output, separate
from modcap.ptq.metric_name import HOW, MetricName

__all__ = ["UserMetric", "with_code"]

Rows = Callable[[Tensor], Tensor]
_AT_ONCE = 64  # images, where their number is not said


def with_code(name: MetricName) -> MetricName:
    """The name, and what the code behind it is, where it is the user's.

    Raises:
        Unavailable: there is no such function, or it cannot be imported.
    """
    if not name.of_user:
        return name
    _function(name)
    return name.model_copy(update={"code": _code(name)})


def _module(name: MetricName) -> Any:
    """Whatever is wrong with it may be mended, and no checkpoint is to blame."""
    try:
        return user_module(name.name.partition(":")[0], f"--metric {name.name}", HOW)
    except InputError as error:
        raise Unavailable(str(error)) from error


def _function(name: MetricName) -> Callable[..., Any]:
    module, _, function = name.name.partition(":")
    found = getattr(_module(name), function, None)
    if not callable(found):
        raise Unavailable(f"--metric {name.name}: module {module} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def _code(name: MetricName) -> str:
    file = getattr(_module(name), "__file__", None)
    return "" if file is None else sha256(Path(file).read_bytes()).hexdigest()


class UserMetric:
    """The user's function, ready to measure."""

    def __init__(self, name: MetricName, outputs: Sequence[Output] = ()) -> None:
        """Imports it; ``outputs`` tell several outputs of the network apart.

        Raises:
            Unavailable: it is not there, or is another one than was asked for.
        """
        self._name, self._outputs = name.name, outputs
        self._function = _function(name)
        if name.code and _code(name) != name.code:
            raise Unavailable(
                f"--metric {name.name}: the worker's code is not that of the command: bring the "
                "same file to both"
            )
        self.title = str(getattr(self._function, "title", name.name.partition(":")[2]))
        self.higher_is_better = bool(getattr(self._function, "higher_is_better", True))

    @torch.no_grad()
    def measure(
        self, network: Rows, full: Rows, images: ImageSet, device: str, batch: int | None
    ) -> float:
        """Its figure.

        Raises:
            InputError: it fails, or gives no number.
        """
        batches = _batches(images, device, batch or _AT_ONCE)
        try:
            found = self._function(self._whole(network), self._whole(full), batches)
            value = float(found)
        except Exception as error:  # of the user's own code
            said = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"--metric {self._name} fails ({said}): mend that function") from error
        if not math.isfinite(value):
            raise InputError(f"--metric {self._name} gives {value}: mend that function")
        return value

    def _whole(self, rows: Rows) -> Callable[[Tensor], Tensor | dict[str, Tensor]]:
        return lambda x: separate(rows(x), self._outputs)


def _batches(images: ImageSet, device: str, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for start in range(0, len(images), size):
        labels = None if images.labels is None else images.labels[start : start + size].to(device)
        yield images.normalized(start, start + size).to(device), labels
