"""What quantizing a model in this process gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modcap.core.errors import Unavailable
from modcap.core.serialization import Result
from modcap.export.artifact import QuantizedNetwork
from modcap.jobs.plan import CellPlan
from modcap.ptq.measured import Scale
from modcap.ptq.selection import Span
from modcap.recipe import Recipe

__all__ = ["Quantized"]

_SHOWN = 3  # groups that are named
_OPTIONAL = ("jinja2", "markupsafe", "matplotlib")  # no part of the library alone


@dataclass(frozen=True)
class Quantized:
    """What :func:`modcap.quantize` returns; ``print`` shows it in a few lines.

    Attributes:
        network: maps (N, C, H, W) float32 to what the model returned; integer weights inside.
        artifact: the packed network, for a file; :func:`modcap.load` reads it.
        modules: names of the modules, in order.
        groups: which modules were reconstructed jointly.
        losses: relative loss of each module behind the quantized prefix.
        oscillation: of these losses.
        results: result of every job by its key.
        recipe: by which it was made.
        images: how many it was calibrated and measured on.
        scale: what it was measured in.
        value, full: the figure of it, and that of full precision.
        float_bytes: of the weights in float32.
        cell: the plan of its jobs.
        name: of the model's class.
    """

    network: QuantizedNetwork
    artifact: bytes
    modules: tuple[str, ...]
    groups: tuple[Span, ...]
    losses: tuple[float, ...]
    oscillation: float
    results: dict[str, Result]
    recipe: Recipe
    images: int
    scale: Scale
    value: float
    full: float
    float_bytes: int
    cell: CellPlan
    name: str

    def __str__(self) -> str:
        """What came of it, in about ten lines."""
        size = len(self.artifact)
        lines = {
            "network": f"{self.name}, {self.recipe.bits_label} by {self.recipe.method.name}",
            "modules": f"{len(self.modules)} in {len(self.groups)} groups",
            "joined": self._joined(),
            "weights": f"{self.float_bytes:,} bytes to {size:,}, {self.float_bytes / size:.1f} "
            "times smaller",
            self.scale.words: f"{self.scale.said(self.value)} on {self.images:,} calibration "
            "images" + self._beside_full(),
            "final error": f"{self.losses[-1]:.3g} of the outputs' energy",
            "oscillation": f"{self.oscillation:.3g}",
            "outputs": ", ".join(output.name for output in self.network.outputs),
        }
        width = max(map(len, lines)) + 2
        found = [f"{name + ':':<{width}}{text}" for name, text in lines.items() if text]
        return "\n".join([*found, "save(path), export(format, path) and report(path) write it"])

    def _joined(self) -> str:
        """The groups of several modules."""
        several = [self.modules[a:b] for a, b in self.groups if b - a > 1]
        shown = ["+".join(names) for names in several[:_SHOWN]]
        more = [f"and {len(several) - _SHOWN} more"] if len(several) > _SHOWN else []
        return ", ".join([*shown, *more]) or "none"

    def _beside_full(self) -> str:
        known = self.scale.metric in ("agreement", "error")
        return "" if known else f" (full precision {self.scale.said(self.full)})"

    def save(self, path: str | Path) -> None:
        """Writes the artifact to a file; :func:`modcap.load` reads it.

        Raises:
            InputError: the path is wrong.
        """
        self.export("safetensors", path)

    def export(self, format: str, path: str | Path, opset: int = 25) -> dict[str, Any]:  # noqa: A002
        """Writes it in another format to a file; see :mod:`modcap.export`.

        Args:
            format: a name in :data:`modcap.export.EXPORTERS`.
            path: of the file.
            opset: of ONNX files: 25, 21 or 13.

        Returns:
            What is to be said of it: bytes, agreement with the artifact, …

        Raises:
            InputError: the network has no form in this format, or the path is wrong.
        """
        from modcap import export

        return export.save(export.Export(self.artifact, opset), format, path)

    def report(self, path: str | Path) -> None:
        """Writes a page (HTML, one file, no network) that shows what came of it, layer by layer.

        Raises:
            Unavailable: a package that draws it is missing.
            InputError: the path is wrong.
        """
        try:
            from modcap.api.page import write_page
        except ImportError as error:
            if error.name not in _OPTIONAL:
                raise
            raise Unavailable(
                f"a report needs {' and '.join(_OPTIONAL[::2])}, and {error.name} is missing: pip "
                "install 'modcap[cluster]'"
            ) from None
        write_page(self, Path(path))
