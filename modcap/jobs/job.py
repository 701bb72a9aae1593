"""Jobs: pure, content-addressed units of work.

The kinds of work are in :mod:`modcap.jobs.kinds`; which jobs make a plan, in
:mod:`modcap.jobs.plan`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from modcap.core.named import Frozen, key_fields, sparse
from modcap.core.serialization import Result, canonical, digest
from modcap.export import Known
from modcap.graph.forward import BATCH, Passes
from modcap.graph.network import Network
from modcap.jobs.cost_model import KEPT, ModuleTimes
from modcap.jobs.outline import Outline
from modcap.jobs.pass_sizes import images_per_pass
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.metric_name import MetricName
from modcap.quantization.bits import Bits
from modcap.recipe import Recipe

__all__ = ["REVISION", "Arithmetic", "Cell", "Job", "Progress", "Room", "Work"]

REVISION = 9
"""Of the algorithm: raise it when the same job would give other bytes than before."""

Progress = Callable[[int, int, float], None]
"""Told (step, steps, loss) while a job optimises."""


class Work(Frozen):
    """What a job does: a pure function of its fields, the job's inputs and earlier results.

    A subclass is a kind of job; :mod:`modcap.jobs.kinds` lists them. All fields are part of keys.

    Attributes:
        kind: its name, for people and in keys.
        small: whether it takes milliseconds, so that many may go to a worker at once.
        counts_activations: whether its memory counts the activations that a worker keeps.
    """

    kind: ClassVar[str]
    small: ClassVar[bool] = False
    counts_activations: ClassVar[bool] = False

    @abstractmethod
    def run(
        self, job: Job, cache: WorkerCache, needs: Sequence[Result], progress: Progress | None
    ) -> Result:
        """Computes it.

        Args:
            job: whose work it is.
            cache: where inputs come from.
            needs: results of ``job.needs``, in that order.
            progress: told of the loss.
        """

    @property
    def steps(self) -> int:
        """Optimisation steps that it takes."""
        return 0

    def seconds(self, times: ModuleTimes) -> float:
        """What it takes on one worker, estimated."""
        return 0.05

    def key_fields(self) -> dict[str, Any]:
        """The fields as JSON, in keys."""
        return key_fields(self)


class Arithmetic(Frozen):
    """What decides the order of sums, and so the last bits of results.

    Attributes:
        threads: of the CPU.
        device: cpu or cuda.
        pass_images: that go through modules at once, without gradients.
        step_images: the same with gradients; None is a whole batch.
    """

    threads: int
    device: str = sparse("cpu")
    pass_images: int = sparse(BATCH)
    step_images: int | None = sparse(None)

    @classmethod
    def fields_of(cls, cell: Cell) -> dict[str, Any]:
        recipe, images = cell.recipe, images_per_pass(cell.network)
        return {"threads": recipe.threads, "device": recipe.place, "pass_images": images}


@dataclass(frozen=True)
class Room:
    """What a job asks of the node that it runs on; no part of keys.

    Attributes:
        memory: bytes that it needs at its peak, estimated; 0 where it needs little.
        gpus: share of a GPU that it asks for; None leaves that to its memory.
        activation_bytes: of calibration activations that it holds in memory; None is all.
    """

    memory: int = 0
    gpus: float | None = None
    activation_bytes: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, memory: int) -> Room:
        return cls(memory, recipe.gpus, recipe.activation_bytes)

    @property
    def activation_limit(self) -> float | None:
        """Bytes of a tensor of activations above which it lies in a file."""
        return None if self.activation_bytes is None else self.activation_bytes / KEPT


@dataclass(frozen=True)
class Job:
    """A unit of work on certain inputs; equal keys are equal work.

    Attributes:
        work: what it does.
        inputs: role (network, calibration, evaluation) to digest.
        needs: keys of the jobs whose results it reads, in order.
        label: for people; not part of the key.
        room: what it asks of a node; not part of the key.
    """

    work: Work
    inputs: dict[str, str]
    needs: tuple[str, ...] = ()
    label: str = field(default="", compare=False)
    room: Room = field(default=Room(), compare=False)

    @property
    def kind(self) -> str:
        """What kind of work it is."""
        return self.work.kind

    @property
    def threads(self) -> int:
        """CPU threads that it runs with."""
        return self.work.threads if isinstance(self.work, Arithmetic) else 1

    @property
    def device(self) -> str:
        """Where it computes: cpu or cuda."""
        return self.work.device if isinstance(self.work, Arithmetic) else "cpu"

    @property
    def passes(self) -> Passes:
        """How many images it lets through modules at once, and where activations lie."""
        limit = self.room.activation_limit
        if not isinstance(self.work, Arithmetic):
            return Passes(limit=limit)
        return Passes(self.work.pass_images, self.work.step_images, limit)

    @cached_property
    def key(self) -> str:
        """sha256 of kind, revision, fields of the work, inputs and the keys it needs."""
        identity = {
            "kind": self.kind,
            "revision": REVISION,
            "params": self.work.key_fields(),
            "inputs": self.inputs,
            "needs": list(self.needs),
        }
        return digest(canonical(identity))


@dataclass(frozen=True)
class Cell:
    """One quantization to make: a network, its images (by digest) and a recipe.

    Attributes:
        network: of one that lies in the store already, its outline is enough.
        calibration, evaluation: digests of images.
        recipe: how.
        name: for people.
        pixels: bytes of the images of evaluation.
        known: where it comes from, for the artifact and its exports.
        exports: formats that the artifact is wanted in, too.
        metric: by which it is measured.
        chosen: bits of each weight layer of each module, where a job chose them.
    """

    network: Network | Outline
    calibration: str
    evaluation: str
    recipe: Recipe
    name: str = ""
    pixels: int = 0
    known: Known = field(default_factory=Known)
    exports: tuple[str, ...] = ()
    metric: MetricName = field(default_factory=MetricName)
    chosen: tuple[tuple[Bits, ...], ...] | None = None

    @cached_property
    def bits(self) -> list[list[Bits]]:
        """Of each weight layer of each module; 8 of weights that are not chosen yet.

        Raises:
            InputError: a name in the recipe is none of the network's.
        """
        if self.chosen is not None:
            return [list(bits) for bits in self.chosen]
        return self.recipe.bit_policy.resolve(self.network)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, in order."""
        return self.network.names

    def inputs(self, *roles: str) -> dict[str, str]:
        """Digests of what a job reads: the network, and images by their role."""
        images = {"calibration": self.calibration, "evaluation": self.evaluation}
        return {"network": self.network.digest} | {role: images[role] for role in roles}
