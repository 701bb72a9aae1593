"""The recipe: all that decides the result of a quantization, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.core.serialization import canonical, digest
from modcap.quantization.layers import BFLOAT16_BITS

__all__ = [
    "PRESETS",
    "Budget",
    "CapacityKind",
    "Device",
    "Homogeneity",
    "Method",
    "Optimiser",
    "Recipe",
    "Rounding",
    "Schedule",
    "Selection",
]


_TUNING = 300  # steps at most, where a recipe leaves it open
_TRIAL = 4  # tuning is as many times as long as the one by which several k are compared


class Method(str, Enum):
    """How the weights of a group are rounded."""

    RTN = "rtn"
    ADAROUND = "adaround"
    BRECQ = "brecq"
    QDROP = "qdrop"


class CapacityKind(str, Enum):
    """How the capacity of a module is computed; ``none`` joins nothing."""

    DATA_FREE = "data-free"
    DATA_DEPENDENT = "data-dependent"
    NONE = "none"


class Selection(str, Enum):
    """How boundaries are chosen, given the differentials."""

    TOP_K = "top-k"
    RANDOM = "random"
    EXPLICIT = "explicit"


class Homogeneity(str, Enum):
    """Which neighbours may be compared: those with equal strides and groups, or any."""

    PAPER = "paper"
    ANY = "any"


class CapacityScale(str, Enum):
    """The scale on which capacities are compared: as they are, or their logarithms."""

    RAW = "raw"
    LOG = "log"


class Budget(str, Enum):
    """What ``iterations`` counts for: a group, however large, or each module of it."""

    GROUP = "group"
    MODULE = "module"


class Schedule(str, Enum):
    """In which order the groups of one checkpoint are reconstructed."""

    SEQUENTIAL = "sequential"
    WAVES = "waves"


class Rounding(str, Enum):
    """How weights learn which integers they become."""

    SOFT = "soft"
    """Up or down, by variables that lie between until the end (AdaRound)."""
    STRAIGHT_THROUGH = "straight-through"
    """To any integer: weights move, are rounded in every step, and gradients pass through that
    (Bengio et al., 2013)."""


class Device(str, Enum):
    """Where jobs compute; another device rounds sums otherwise, and gives other bytes."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(str, Enum):
    """What passes through modules compute in while they are optimised; variables, their gradients
    and all results are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimiser(_Frozen):
    """The optimisation of one group (defaults: the published experiments)."""

    iterations: int = Field(20_000, ge=0, description="Adam steps per group")
    batch_size: int = Field(32, ge=1, description="images per step")
    rounding: Rounding = Field(
        Rounding.SOFT,
        description="soft: each weight up or down, as AdaRound does; straight-through: weights "
        "move, and are rounded in every step",
    )
    rounding_rate: float = Field(
        1e-3,
        gt=0,
        description="learning rate of rounding variables; straight-through: of weights, in "
        "distances of integers, in channels of less than 256 weights slower in proportion",
    )
    scale_rate: float = Field(
        4e-5,
        ge=0,
        description="learning rate of activation scales, absolute: a hundredth of one at most",
    )
    relative_scale_rate: bool = Field(
        False, description="scale_rate counts in units of the scale that the search found"
    )
    weight_scale_rate: float = Field(
        0.0, ge=0, description="relative learning rate of weight scales; 0 keeps them as searched"
    )
    bias_rate: float = Field(
        0.0,
        ge=0,
        description="learning rate of biases, relative to the root mean square of their layer's "
        "output; 0 keeps them",
    )
    rounding_decay: bool = Field(False, description="cosine decay of rounding_rate too")
    regulariser: float = Field(0.01, ge=0, description="weight of the regulariser of soft rounding")
    warm_up: float = Field(0.2, ge=0, lt=1, description="fraction of steps without regulariser")
    beta_start: float = Field(20.0, gt=0)
    beta_end: float = Field(2.0, gt=0)
    keep_probability: float = Field(
        0.5, ge=0, le=1, description="qdrop: probability that an element is quantized"
    )
    precision: Precision = Field(
        Precision.FLOAT32,
        description="of passes through modules, in tuning too; bfloat16 is faster where the "
        "processor has it",
    )


class Recipe(_Frozen):
    """All that decides the result. Equal recipes, checkpoints and images give equal bytes.

    Example:
        >>> Recipe(w_bits=2, a_bits=4, k=3).w_bits
        2
        >>> Recipe.preset("quick", w_bits=3).optimiser.iterations < 20_000
        True
    """

    w_bits: int = Field(4, ge=2, le=8, description="bits of weights")
    a_bits: int = Field(4, ge=2, le=8, description="bits of activations")
    edge_bits: int = Field(8, ge=2, le=8, description="bits of the first and the last layer")
    method: Method = Method.QDROP
    capacity: CapacityKind = CapacityKind.DATA_FREE
    capacity_scale: CapacityScale = CapacityScale.RAW
    capacity_images: int = Field(256, ge=1, description="images for data-dependent capacity")
    stride_coefficient: float = Field(1.6, gt=0, description="alpha of stride-2 convolutions")
    homogeneity: Homogeneity = Homogeneity.PAPER
    selection: Selection = Selection.TOP_K
    k: int | None = Field(None, ge=0, description="boundaries to select; None chooses")
    k_search: float = Field(
        0.5,
        ge=0,
        description="k None: work spent on comparing several k by their final error (after a "
        "quarter of the tuning, where there is one), at most, as a share of that of a single run; "
        "0 takes k from capacity alone",
    )
    groups: tuple[tuple[str, ...], ...] = Field(
        (), description="selection explicit: joined modules"
    )
    iterations_per: Budget = Field(
        Budget.GROUP, description="module: a group of n modules takes n times the iterations"
    )
    schedule: Schedule = Schedule.SEQUENTIAL
    shared_prefix: bool = Field(
        False,
        description="schedule sequential: a group sees the modules before it as reconstructed one "
        "by one, not joined, so that cells of every k share them",
    )
    path_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="schedule waves: longest path, as a share of that of sequential; 0 puts every "
        "module beside every other",
    )
    correction: bool | None = Field(
        None,
        description="correct each channel's mean and scale at the end, in one pass; None does so "
        "for schedule waves",
    )
    tuning: int | None = Field(
        None,
        ge=0,
        description="steps that train the whole network at the end, on its logits; None takes 3 "
        "for each of iterations, at most 300, where the optimiser learns weight scales, else 0",
    )
    tuning_rate: float = Field(1e-2, gt=0, description="learning rate of tuning, relative")
    tuning_rounding_rate: float = Field(
        2e-3,
        ge=0,
        description="learning rate of weights while tuning, in distances of integers; in channels "
        "of less than 256 weights slower in proportion; 0 keeps the integers",
    )
    scale_exponent: float = Field(2.4, gt=0, description="p of the scale search, |x - q(x)|^p")
    optimiser: Optimiser = Optimiser()
    calibration: int = Field(1024, ge=1, description="calibration images")
    seed: int = Field(0, ge=0, lt=2**32, description="of calibration images, batches, drops")
    threads: int = Field(1, ge=1, description="CPU threads per job; another number, other bytes")
    device: Device = Field(Device.CPU, description="where jobs compute; another one, other bytes")
    gpus: float | None = Field(
        None,
        gt=0,
        le=1,
        description="device cuda: share of a GPU per job; None takes what its memory needs, and a "
        "whole one where nodes do not say how much theirs have",
    )

    activation_memory: float | None = Field(
        None,
        gt=0,
        description="device cpu: GiB of calibration activations that a reconstruction, or tuning, "
        "holds in memory, and of those that a worker keeps; larger ones lie in temporary files; "
        "same bytes. None holds all",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.activation_memory is not None and self.device is not Device.CPU:
            raise ValueError("activation_memory is for device cpu: leave it out")
        coarse = self.optimiser.precision is Precision.BFLOAT16
        if coarse and max(self.w_bits, self.a_bits) > BFLOAT16_BITS:
            raise ValueError(
                f"precision bfloat16 is too coarse for more than {BFLOAT16_BITS} bits: take float32"
            )
        if (self.selection is Selection.EXPLICIT) != bool(self.groups):
            raise ValueError("selection explicit and groups go together: give both or neither")
        unmeasured = self.selection is Selection.TOP_K and self.capacity is CapacityKind.NONE
        if self.k and unmeasured and self.method is not Method.RTN:
            raise ValueError("capacity none measures nothing to select by: take k 0, or a capacity")
        if self.optimises and self.optimiser.batch_size > self.calibration:
            raise ValueError(
                f"batch_size {self.optimiser.batch_size} is more than the {self.calibration} "
                "calibration images"
            )
        return self

    @property
    def optimises(self) -> bool:
        """Whether anything is learned in steps over batches of images."""
        return self.method is not Method.RTN or self.tuning_steps > 0

    @property
    def corrects(self) -> bool:
        """Whether a correction ends the run."""
        if self.correction is None:
            return self.schedule is Schedule.WAVES and self.method is not Method.RTN
        return self.correction

    @property
    def tuning_steps(self) -> int:
        """How many steps of tuning end the run, after the correction."""
        if self.tuning is not None:
            return self.tuning
        learns = self.method is not Method.RTN and self.optimiser.weight_scale_rate > 0
        return min(3 * self.optimiser.iterations, _TUNING) if learns else 0

    @property
    def trial_steps(self) -> int:
        """How many steps of tuning come before several k are compared."""
        return self.tuning_steps // _TRIAL

    @property
    def activation_bytes(self) -> int | None:
        """``activation_memory`` in bytes."""
        return None if self.activation_memory is None else int(self.activation_memory * 2**30)

    @property
    def k_asked(self) -> str:
        """How many boundaries to select, or ``auto``."""
        if self.selection is Selection.EXPLICIT:
            return str(sum(len(group) - 1 for group in self.groups))
        return "auto" if self.k is None else str(self.k)

    @property
    def bits(self) -> str:
        """Such as ``W4A8``."""
        return f"W{self.w_bits}A{self.a_bits}"

    @property
    def digest(self) -> str:
        """sha256 of what differs from the defaults, so that new fields do not change it.

        Left out is what decides where jobs find room, not what they give.
        """
        room = {"gpus", "activation_memory"}
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude=room)
        return digest(canonical(fields))

    @classmethod
    def make(cls, values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
        """Overlays ``values`` (nested, as in a recipe file) on ``base`` and validates the whole.

        Raises:
            InputError: a field is unknown or out of range; the message names field and bounds.
        """
        start = base.model_dump(mode="json") if base else {}
        return parse(cls, _overlay(start, values), "recipe")

    @classmethod
    def preset(cls, name: str, /, **values: Any) -> Recipe:
        """The preset ``name`` (``paper`` or ``quick``) with ``values`` laid over it."""
        if name not in PRESETS:
            raise InputError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
        return cls.make(values, PRESETS[name])


def _overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in values.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = _overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged


PRESETS: dict[str, Recipe] = {
    "paper": Recipe(),
    "quick": Recipe(
        schedule=Schedule.WAVES,
        optimiser=Optimiser(
            iterations=100,
            rounding=Rounding.STRAIGHT_THROUGH,
            rounding_rate=1e-1,
            scale_rate=1e-3,
            relative_scale_rate=True,
            weight_scale_rate=1e-3,
            bias_rate=1e-3,
            rounding_decay=True,
        ),
    ),
}
