"""The recipe: all that decides the result of a quantization, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import Field, model_validator

from modcap.core.canonical import canonical, digest
from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.ptq.methods import AnyMethod, QDrop
from modcap.ptq.settings import Optimiser, Precision, RoundingStart, flat_fields
from modcap.quantization.bits import BFLOAT16_BITS
from modcap.quantization.scheme import Activations, Scales, Scheme, WeightRange
from modcap.recipe.bit_fields import BitFields
from modcap.recipe.overlay import overlay, read_old_names

__all__ = [
    "Budget",
    "CapacityKind",
    "CapacityScale",
    "Device",
    "Homogeneity",
    "Recipe",
    "Schedule",
    "Selection",
]


_ACTIVATIONS = 0.5  # GiB in memory, where a recipe leaves it open
_TUNING = 300  # steps at most, where a recipe leaves it open
_TRIAL = 4  # tuning is as many times as long as the one by which several k are compared


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


class Device(str, Enum):
    """Where jobs compute; another device rounds sums otherwise, and gives other bytes. ``auto`` is
    a GPU where there is one: :meth:`Recipe.on` says which, before anything is planned."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Recipe(BitFields):
    """All that decides the result. Equal recipes, checkpoints and images give equal bytes.

    Example:
        >>> Recipe(w_bits=2, a_bits=4, k=3).w_bits
        2
        >>> Recipe.preset("quick", w_bits=3).optimiser.iterations < 20_000
        True
    """

    activations: Activations = Field(
        Activations.INPUTS,
        description="what is quantized: what weight layers read (inputs), or all that an integer "
        "device holds: also sums, concatenations, averages, what layers give, biases and logits",
    )
    weights: WeightRange = Field(
        WeightRange.ASYMMETRIC,
        description="symmetric: integers of weights have 0 in the middle, for devices that have no "
        "zero points of weights",
    )
    scales: Scales = Field(
        Scales.ANY, description="power-of-two: for devices that shift in place of multiplying"
    )
    method: AnyMethod = Field(
        QDrop(),
        description="what a group sees while it is optimised; a recipe file may also give its "
        "settings, as a mapping",
    )
    capacity: CapacityKind = Field(
        CapacityKind.DATA_FREE,
        description="how capacity is measured: from weights alone, or on images; none joins "
        "nothing",
    )
    capacity_scale: CapacityScale = Field(
        CapacityScale.RAW, description="compare capacities as they are, or their logarithms"
    )
    capacity_images: int = Field(256, ge=1, description="images for data-dependent capacity")
    stride_coefficient: float = Field(1.6, gt=0, description="alpha of stride-2 convolutions")
    homogeneity: Homogeneity = Field(
        Homogeneity.PAPER,
        description="neighbours that may be joined: those of equal strides and groups, or any",
    )
    selection: Selection = Field(
        Selection.TOP_K,
        description="boundaries to join: the largest differentials, random ones, or those of "
        "groups",
    )
    k: int | None = Field(
        None,
        ge=0,
        description="boundaries to select, so that the modules beside them are reconstructed "
        "together; auto compares several",
    )
    k_search: float = Field(
        0.5,
        ge=0,
        description="k auto: work spent on comparing several k by their final error (after a "
        "quarter of the tuning, where there is one), at most, as a share of that of a single run; "
        "0 takes k from capacity alone",
    )
    groups: tuple[tuple[str, ...], ...] = Field(
        (), description="selection explicit: joined modules"
    )
    iterations_per: Budget = Field(
        Budget.GROUP, description="module: a group of n modules takes n times the iterations"
    )
    schedule: Schedule = Field(
        Schedule.SEQUENTIAL,
        description="groups one after another, as published, or side by side in waves",
    )
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
        description="correct each channel's mean and scale at the end, in one pass; auto does so "
        "for schedule waves",
    )
    tuning: int | None = Field(
        None,
        ge=0,
        description="steps that train the whole network at the end, on its logits; auto takes 3 "
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
    rounding_start: RoundingStart = Field(
        RoundingStart.NEAREST,
        description="which integers groups have before any are learned: those nearest to each "
        "weight, or (layer-wise) those by which each layer gives most nearly what it gave, in one "
        "pass; not with soft rounding, which moves weights by less than an integer",
    )
    optimiser: Optimiser = Optimiser()
    positions: int | None = Field(
        None,
        ge=1,
        description="positions, such as height x width, that a step of a reconstruction sees at "
        "most where its weight layers give the most of them: groups of larger images take fewer "
        "of these a step, but 4 at least; None is no bound. 25088 is 32 images of 28 x 28",
    )
    calibration: int = Field(1024, ge=1, description="calibration images")
    seed: int = Field(0, ge=0, lt=2**32, description="of calibration images, batches, drops")
    threads: int = Field(1, ge=1, description="CPU threads per job; another number, other bytes")
    device: Device = Field(
        Device.AUTO,
        description="where jobs compute; auto takes a GPU where the cluster, or this process, has "
        "one; another one, other bytes",
    )
    gpus: float | None = Field(
        None,
        gt=0,
        le=1,
        description="device cuda: share of a GPU per job; auto takes what its memory needs, and a "
        "whole one where nodes do not say how much theirs have",
    )

    activation_memory: float | None = Field(
        None,
        gt=0,
        description="device cpu: GiB of calibration activations that a job holds in memory, and of "
        "those that a worker keeps; larger ones lie in temporary files; same bytes; auto is half a "
        "GiB; on a GPU all are held",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.activation_memory is not None and self.device is Device.CUDA:
            raise ValueError("activation_memory is for device cpu: leave it out")
        coarse = self.optimiser.precision is Precision.BFLOAT16
        widths = [8 if self.w_bits == "auto" else self.w_bits]
        widths += [] if self.a_bits == "none" else [self.a_bits]
        if coarse and max(widths) > BFLOAT16_BITS:
            raise ValueError(
                f"precision bfloat16 is too coarse for more than {BFLOAT16_BITS} bits: take float32"
            )
        if self.keeps_float and self.activations is Activations.ALL:
            raise ValueError(
                "activations all is for devices that compute in integers alone: leave float, and "
                "a_bits none, out"
            )
        if (self.selection is Selection.EXPLICIT) != bool(self.groups):
            raise ValueError("selection explicit and groups go together: give both or neither")
        unmeasured = self.selection is Selection.TOP_K and self.capacity is CapacityKind.NONE
        if self.k and unmeasured and self.method.learns:
            raise ValueError("capacity none measures nothing to select by: take k 0, or a capacity")
        bound = self.method.learns and not self.optimiser.rounding.starts_anywhere
        if self.rounding_start is RoundingStart.LAYER_WISE and bound:
            raise ValueError(
                f"rounding_start layer-wise leaves nothing to learn to rounding "
                f"{self.optimiser.rounding.name}: take straight-through, or method rtn"
            )
        if self.optimises and self.optimiser.batch_size > self.calibration:
            raise ValueError(
                f"batch_size {self.optimiser.batch_size} is more than the {self.calibration} "
                "calibration images"
            )
        return self

    def on(self, gpu: bool) -> Recipe:
        """The same with a device that is known, by whether there is a GPU."""
        if self.device is not Device.AUTO:
            return self
        if not gpu:
            return self.model_copy(update={"device": Device.CPU})
        return self.model_copy(update={"device": Device.CUDA, "activation_memory": None})

    @property
    def place(self) -> str:
        """Where jobs compute: cpu or cuda; cpu where nobody has said :meth:`on` what."""
        return "cuda" if self.device is Device.CUDA else "cpu"

    @property
    def optimises(self) -> bool:
        """Whether anything is learned in steps over batches of images."""
        return self.method.learns or self.tuning_steps > 0

    @property
    def corrects(self) -> bool:
        """Whether a correction ends the run."""
        if self.correction is None:
            return self.schedule is Schedule.WAVES and self.method.learns
        return self.correction

    @property
    def tuning_steps(self) -> int:
        """How many steps of tuning end the run, after the correction."""
        if self.tuning is not None:
            return self.tuning
        learns = self.method.learns and self.optimiser.weight_scale_rate > 0
        return min(3 * self.optimiser.iterations, _TUNING) if learns else 0

    @property
    def trial_steps(self) -> int:
        """How many steps of tuning come before several k are compared."""
        return self.tuning_steps // _TRIAL

    @property
    def activation_bytes(self) -> int | None:
        """``activation_memory`` in bytes; None is no bound."""
        if self.place != "cpu":
            return None
        bound = _ACTIVATIONS if self.activation_memory is None else self.activation_memory
        return int(bound * 2**30)

    @property
    def k_asked(self) -> str:
        """How many boundaries to select, or ``auto``."""
        if self.selection is Selection.EXPLICIT:
            return str(sum(len(group) - 1 for group in self.groups))
        return "auto" if self.k is None else str(self.k)

    @property
    def scheme(self) -> Scheme:
        """What is quantized, and on which grids."""
        return Scheme(activations=self.activations, weights=self.weights, scales=self.scales)

    @property
    def digest(self) -> str:
        """sha256 of what differs from the defaults, so that new fields do not change it.

        Left out is what decides where jobs find room, not what they give.
        """
        usual = _written(Recipe())
        changed = {n: v for n, v in _written(self).items() if n != "optimiser" and v != usual[n]}
        mine, theirs = _written(self)["optimiser"], usual["optimiser"]
        optimiser = {n: v for n, v in mine.items() if n not in theirs or v != theirs[n]}
        return digest(canonical(changed | ({"optimiser": optimiser} if optimiser else {})))

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        return read_old_names(values) if isinstance(values, Mapping) else values

    @classmethod
    def make(cls, values: Mapping[str, Any], base: Recipe | None = None) -> Recipe:
        """Overlays ``values`` (nested, as in a recipe file) on ``base`` and validates the whole.

        Raises:
            InputError: a field is unknown or out of range; the message names field and bounds.
        """
        start = base.model_dump(mode="json") if base else {}
        return parse(cls, overlay(start, read_old_names(values)), "recipe")

    @classmethod
    def preset(cls, name: str, /, **values: Any) -> Recipe:
        """The preset ``name`` (``paper``, ``quick`` or ``fast``) with ``values`` laid over it."""
        from modcap.recipe.presets import PRESETS

        if name not in PRESETS:
            raise InputError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
        return cls.make(values, PRESETS[name])


def _written(recipe: Recipe) -> dict[str, Any]:
    """The fields of ``recipe`` as digests have always had them."""
    fields = recipe.model_dump(mode="json", exclude={"gpus", "activation_memory"})
    fields["edge_bits"] = fields.pop("first_last_bits")
    fields["device"] = recipe.place
    usual = recipe.optimiser.rounding.for_network(0)  # jobs' keys know what the network changes
    settings = recipe.optimiser.model_copy(update={"rounding": usual})
    optimiser = flat_fields(settings, recipe.method)
    decays = {"rounding_decay": recipe.optimiser.rounding.decays}
    return fields | {"method": recipe.method.name, "optimiser": optimiser | decays}
