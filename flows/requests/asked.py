"""What a user asks for, as typed fields. Reading it waits neither for torch nor for a client."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modcap.data.sources import HELP
from modcap.ptq.metric_name import MetricName
from modcap.recipe import Recipe

__all__ = ["Request", "known_formats", "known_metric"]

_MODEL_NAME = re.compile(
    r"(?!\.*$)[^/:'\"`\\?@\x00-\x1f\x7f]+"
)  # what MLflow takes and its searches and addresses read


def known_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, if each is that of a format."""
    from modcap.export import EXPORTERS

    for name in names:
        if name not in EXPORTERS:
            raise ValueError(f"{name!r} is no format: give {', '.join(EXPORTERS)}")
    return names


def known_metric(name: str | None) -> str | None:
    """``name``, if it is that of a metric, or may be the user's."""
    return None if name is None else MetricName(name=name).name


class Request(BaseModel):
    """One quantization, as the command line, a deployment or a schedule asks for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        description="local path or s3:// address of .pt2, .safetensors, .pt, .pth"
    )
    arch: str | None = Field(
        None, description="torchvision:NAME, timm:NAME or package.module:factory; not for .pt2"
    )
    data: str | None = Field(
        None, description=f"images: {HELP}; only capacity and plan can do without"
    )
    strict: bool = Field(
        False,
        description="refuse a network that has a product which cannot be quantized; else that "
        "stays in floating point, and the report says so",
    )
    eval_data: str | None = Field(None, description="where test images come from, if elsewhere")
    eval_images: int | None = Field(None, ge=1, description="test images to use; all by default")
    preprocess: str | None = Field(None, description="such as 'mean=0.286,std=0.353'")
    classes: str | None = Field(
        None,
        description="file or folder of class names; by default the folders of data",
    )
    metric: str | None = Field(
        None,
        description="what is measured: top1, agreement, error, or package.module:function; by "
        "default top1 with labels, else agreement with full precision, of maps the relative error",
    )
    name: str | None = Field(
        None,
        description="registered model; by default the file's stem and the bits, such as net-w4a4",
    )
    force: bool = Field(
        False,
        description="register under a name whose versions are of another file, or another network",
    )
    onnx: bool = Field(False, description="the same as exports [onnx]; needs modcap[export]")
    exports: tuple[str, ...] = Field((), description="formats to register too: onnx, pt2, …")
    recipe: Recipe = Recipe()

    def on(self, gpu: bool) -> Request:
        """The same with a device that is known; see :meth:`modcap.recipe.Recipe.on`."""
        return self.model_copy(update={"recipe": self.recipe.on(gpu)})

    @property
    def label(self) -> str:
        """What the network is called: the name that was chosen, or the file's stem."""
        stem = self.checkpoint.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
        return self.name or stem

    @property
    def model_name(self) -> str:
        """Of the registered model: the name that was chosen, or ``STEM-w4a4``, as scans give it,
        whose versions are then of one file and one recipe's bits."""
        return self.name or f"{self.label}-{self.recipe.bits_label.lower()}"

    @property
    def formats(self) -> tuple[str, ...]:
        """What the version holds beside the artifact, each once."""
        return tuple(dict.fromkeys((*(("onnx",) if self.onnx else ()), *self.exports)))

    @field_validator("exports")
    @classmethod
    def _are_known(cls, exports: tuple[str, ...]) -> tuple[str, ...]:
        return known_formats(exports)

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str | None) -> str | None:
        return known_metric(metric)

    @model_validator(mode="after")
    def _may_be_registered(self) -> Request:
        if not _MODEL_NAME.fullmatch(self.model_name):
            raise ValueError(
                f"a registered model cannot be called {self.model_name!r}: give a name without "
                "slash, colon, quote, backslash, question mark, @ or control character"
            )
        return self
