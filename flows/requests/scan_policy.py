"""The policy of a scan: which checkpoints are quantized, with which images, by which recipes."""

from __future__ import annotations

import fnmatch
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.flows.requests.asked import known_formats, known_metric
from modcap.flows.requests.documents import read_mapping
from modcap.flows.requests.permissions import Permissions
from modcap.recipe import Recipe

__all__ = ["Manifest", "Policy", "Rule", "read_policy"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Frozen):
    """A recipe as people write it: a preset, and what differs from it."""

    preset: str = "quick"
    name: str = Field("", description="suffix of the registered model; by default the bits")
    fields: dict[str, Any] = Field(default_factory=dict, description="recipe fields")

    @model_validator(mode="after")
    def _makes_a_recipe(self) -> Choice:
        try:
            self.recipe()
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    def recipe(self) -> Recipe:
        return Recipe.preset(self.preset, **self.fields)

    def suffix(self) -> str:
        return self.name or self.recipe().bits_label.lower()


class Manifest(_Frozen):
    """``NAME.modcap.yaml`` beside ``NAME.safetensors``: what only its owner knows of a checkpoint.

    ``sha256`` and ``bytes`` say when the upload is complete.
    """

    arch: str | None = None
    data: str | None = None
    eval_data: str | None = None
    preprocess: str | None = None
    name: str | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    bytes: int | None = Field(None, ge=1)


class Rule(_Frozen):
    """What is done with checkpoints whose name below the prefix matches; the first match counts."""

    match: str = Field("*", description="pattern such as mobilenets/*.safetensors")
    arch: str | None = Field(None, description="where neither manifest nor weights say it")
    data: str | None = Field(None, description="images, where no manifest says it")
    eval_data: str | None = None
    eval_images: int | None = Field(None, ge=1)
    preprocess: str | None = None
    metric: str | None = Field(None, description="what is measured, as of modcap quantize")
    onnx: bool = Field(False, description="the same as exports [onnx]")
    exports: tuple[str, ...] = Field((), description="formats to register too: onnx, pt2, …")
    recipes: tuple[Choice, ...] = Field(min_length=1)

    @field_validator("exports")
    @classmethod
    def _are_known(cls, exports: tuple[str, ...]) -> tuple[str, ...]:
        return known_formats(exports)

    @property
    def identity(self) -> dict[str, Any]:
        """What is noted of it; fields that came later only where they are used."""
        unused = {"metric"} if self.metric is None else set()
        return self.model_dump(mode="json", exclude=unused)

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str | None) -> str | None:
        return known_metric(metric)

    @field_validator("recipes")
    @classmethod
    def _have_names_of_their_own(cls, recipes: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """Else two recipes would make versions of one model."""
        suffix, count = Counter(choice.suffix() for choice in recipes).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"{count} recipes make models called …-{suffix}: give each a name of its own"
            )
        return recipes


class Policy(Permissions):
    """Rules, how long an object must rest before it counts as uploaded, and what uploaders may
    name."""

    rules: tuple[Rule, ...] = Field(min_length=1)
    settle_seconds: float = Field(60.0, ge=0, description="younger objects wait for the next pass")

    def rule(self, name: str) -> Rule | None:
        """The first rule that matches a name below the prefix."""
        return next((rule for rule in self.rules if fnmatch.fnmatch(name, rule.match)), None)

    @property
    def permissions(self) -> Permissions:
        return Permissions(factories=self.factories, data_below=self.data_below)


def read_policy(path: Path) -> Policy:
    """The policy in a YAML or JSON file.

    Raises:
        InputError: it cannot be read, or a field of it is wrong.
    """
    name = f"policy {path}"
    return parse(Policy, read_mapping(path, name), name)
