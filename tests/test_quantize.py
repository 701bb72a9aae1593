"""The library's front door on real data: the shipped checkpoints, in seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modcap
from modcap.checkpoints import checkpoint
from modcap.checkpoints.published_preprocess import published_preprocess
from modcap.data import sources as data
from modcap.data.image_set import ImageSet
from modcap.ptq.metrics import top1
from modcap.ptq.oscillation import losses, oscillation
from modcap.recipe import PRESETS
from tests.networks import convolutions, make

CHECKPOINTS = Path(__file__).parent.parent / "examples/fashion_mnist/checkpoints"
ARCH = "modcap.zoo:resnet18_narrow"
SMALL = ["squeezenet1_1", "mobilenet_v3_small", "zoo_regnet", "zoo_vgg"]


def shipped(name: str) -> nn.Module:
    loaded = checkpoint.load(CHECKPOINTS / f"{name}.safetensors", f"modcap.zoo:{name}").model
    assert isinstance(loaded, nn.Module)
    return loaded


def images(split: Any, count: int) -> ImageSet:
    preprocess = published_preprocess(ARCH)
    some = data.load("fashion-mnist", split=split, preprocess=preprocess).take(range(count))
    return ImageSet(
        torch.tensor(some.images), torch.tensor(some.labels), preprocess.mean, preprocess.std
    )


@pytest.fixture(scope="module")
def calibration() -> Tensor:
    return images("calibration", 32).normalized()


def quick(**values: Any) -> modcap.Recipe:
    """Few steps; and a square in the search for scales, ten times faster than a power."""
    base = {
        "calibration": 32,
        "optimiser": {"iterations": 8, "batch_size": 16},
        "scale_exponent": 2.0,
    }
    return modcap.Recipe.preset("quick", **(base | values))


@pytest.mark.parametrize(
    ("name", "least"), [("mobilenet_v2_x0_5", 92.5), ("resnet18_narrow", 93.0)]
)
def test_shipped_checkpoints_keep_their_promise(name: str, least: float) -> None:
    with torch.no_grad():
        assert top1(shipped(name), images("evaluation", 10_000)) >= least


def test_reconstruction_beats_rounding_on_a_real_checkpoint(calibration: Tensor) -> None:
    model, tests = shipped("mobilenet_v2_x0_5"), images("evaluation", 500)
    nearest = modcap.quantize(model, calibration, quick(w_bits=3, a_bits=4, method="rtn", k=0))
    joined = modcap.quantize(model, calibration, quick(w_bits=3, a_bits=4, k=2))
    assert sum(stop - start > 1 for start, stop in joined.groups) >= 1
    assert joined.losses[-1] < nearest.losses[-1]
    assert top1(joined.network, tests) > top1(nearest.network, tests) + 5
    assert len(joined.artifact) == len(nearest.artifact)


def test_same_seed_same_artifact(calibration: Tensor) -> None:
    model = shipped("resnet18_narrow")
    recipe = quick(w_bits=2, k=1, optimiser={"iterations": 3, "batch_size": 16})
    first, second = (modcap.quantize(model, calibration, recipe).artifact for _ in range(2))
    other = recipe.model_copy(update={"seed": 1})
    assert first == second
    assert modcap.quantize(model, calibration, other).artifact != first


def test_artifact_file_is_all_a_consumer_needs(calibration: Tensor, tmp_path: Path) -> None:
    recipe = quick(w_bits=2, method="rtn", k=0)
    done = modcap.quantize(shipped("resnet18_narrow"), calibration, recipe)
    (tmp_path / "network.safetensors").write_bytes(done.artifact)
    loaded = modcap.load(tmp_path / "network.safetensors")
    assert torch.equal(loaded(calibration), done.network(calibration))


@pytest.mark.parametrize("name", SMALL)  # benchmarks/architectures.py runs all of them
def test_networks_are_quantized(name: str) -> None:
    """RTN at W8A8 stays close to the original; a few steps at W4A4 run."""
    model, some = make(name)
    network = modcap.build(model, some)
    small = {
        "calibration": 3,
        "optimiser": {"iterations": 2, "batch_size": 2},
    }
    eight = quick(w_bits=8, a_bits=8, method="rtn", k=0, **small)
    done = modcap.quantize(network, some, eight)
    assert done.losses[-1] < 0.05
    four = quick(w_bits=4, a_bits=4, k=0, **small)
    assert torch.isfinite(modcap.quantize(network, some, four).network(some)).all()


def small(x: Tensor, **fields: Any) -> modcap.Quantized:
    settings = {"iterations": 3, "batch_size": 8}
    recipe = modcap.Recipe.preset("quick", optimiser=settings, **fields)
    return modcap.quantize(convolutions(bias=True), x, recipe)


@pytest.mark.parametrize("k", [0, 1])
def test_every_group_is_reconstructed_behind_its_quantized_prefix(k: int) -> None:
    """So what each job says of its error is the loss of the whole network up to it."""
    fields = {"schedule": "sequential", "tuning": 0, "homogeneity": "any", "w_bits": 2}
    done = small(torch.randn(40, 3, 9, 9), k=k, **fields)
    metas = [r.meta for r in done.results.values() if r.meta["kind"] == "reconstruct"]
    errors = {meta["stop"]: meta["error"] for meta in metas}
    assert len(errors) == 4 - k
    for stop, error in errors.items():
        assert done.losses[stop - 1] == pytest.approx(error, rel=1e-5)


def test_no_grad_around_a_call_does_not_reach_inside() -> None:
    x = torch.randn(16, 3, 9, 9)
    expected = small(x).artifact
    with torch.no_grad():
        assert small(x).artifact == expected
    with torch.inference_mode():
        assert small(x * 1).artifact == expected
    assert small(x.clone().requires_grad_()).artifact == expected


X = torch.linspace(-1, 1, 16 * 3 * 9 * 9).reshape(16, 3, 9, 9)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (X.numpy(), "images are of type ndarray: give a torch.Tensor"),
        ([X.numpy()], "images are of type ndarray: give a torch.Tensor"),
        ([], "there are no batches of images"),
        ([X, X[..., :8]], "batches hold images of shapes (3, 9, 8) and (3, 9, 9)"),
        ({"image": X}, "images are of type dict: give a torch.Tensor"),
        (3, "images are of type int: give a torch.Tensor"),
        (X.byte(), "images are uint8: give float32"),
        (X.long(), "images are int64: give float32"),
        (X[0], "images are of shape (3, 9, 9): give (N, C, H, W)"),
        (X[:0], "images are of shape (0, 3, 9, 9), which is empty"),
        (X.double() * 1e300, "NaN or infinity"),
    ],
)
def test_what_is_no_set_of_images_is_refused(images: Any, said: str) -> None:
    with pytest.raises(modcap.InputError, match=re.escape(said)) as caught:
        small(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_images_of_other_precision_become_float32(kind: torch.dtype) -> None:
    given = X.to(kind)
    found = small(given, method="rtn", k=0)
    assert found.artifact == small(given.float(), method="rtn", k=0).artifact


def test_images_that_do_not_fit_are_refused() -> None:
    x = torch.randn(16, 3, 9, 9)
    broken = x.clone()
    broken[5, 0, 0, 0] = torch.nan
    with pytest.raises(modcap.InputError, match="NaN or infinity"):
        small(broken)
    with pytest.raises(modcap.InputError, match=r"give \(N, C, H, W\)"):
        modcap.quantize(convolutions(bias=True), x[0].repeat(8, 1, 1), quick())
    network = modcap.build(convolutions(bias=True), x)
    with pytest.raises(modcap.InputError, match=r"the network takes \(N, 3, 9, 9\)"):
        modcap.quantize(network, torch.randn(16, 3, 8, 8), quick())


def test_waves_run(calibration: Tensor) -> None:
    model = shipped("resnet18_narrow")
    recipe = quick(w_bits=4, schedule="waves")
    done = modcap.quantize(model, calibration, recipe)
    nearest = modcap.quantize(model, calibration, quick(w_bits=4, method="rtn", k=0))
    assert done.losses[-1] < nearest.losses[-1]


def test_automatic_k_has_the_least_final_error_of_those_compared(calibration: Tensor) -> None:
    model = shipped("resnet18_narrow")
    few = {"optimiser": {"iterations": 4, "batch_size": 16}, "tuning": 8}
    done = modcap.quantize(model, calibration, quick(w_bits=2, **few))
    (chosen,) = (r.meta for r in done.results.values() if r.meta["kind"] == "choose")
    compared = {row["k"]: row["error"] for row in chosen["compared"]}
    assert len(compared) > 1
    assert chosen["k"] == min(compared, key=compared.__getitem__)
    assert done.groups == tuple(map(tuple, chosen["groups"]))
    assert len(done.modules) - len(done.groups) == chosen["k"]
    fixed = modcap.quantize(model, calibration, quick(w_bits=2, k=chosen["k"], **few))
    assert fixed.artifact == done.artifact
    tuned = [{k for k, r in x.results.items() if r.meta["kind"] == "tune"} for x in (fixed, done)]
    assert (
        tuned[0] < tuned[1]
    )  # equal work has equal keys; each that was compared was tuned shortly
    assert len(tuned[1]) == len(compared) + 1


def test_too_few_images_are_refused(calibration: Tensor) -> None:
    with pytest.raises(
        modcap.InputError, match="8 calibration images are fewer than batch_size 16"
    ):
        modcap.quantize(shipped("resnet18_narrow"), calibration[:8], quick())
    tuned = quick(method="rtn", k=0, tuning=2)
    with pytest.raises(modcap.InputError, match="fewer than batch_size 16"):
        modcap.quantize(shipped("resnet18_narrow"), calibration[:8], tuned)


def test_rounding_alone_needs_no_batch() -> None:
    done = modcap.quantize(convolutions(bias=True), X[:3], quick(w_bits=8, a_bits=8, method="rtn"))
    assert len(done.losses) == len(done.modules)


def test_oscillation_is_the_mean_step_over_the_mean() -> None:
    assert oscillation([1.0, 3.0, 2.0]) == pytest.approx(1.5 / 2.0)
    assert oscillation([0.5]) == 0
    assert oscillation([0.2, 0.2]) == 0


def test_losses_are_relative_to_the_full_precision_energy() -> None:
    full = [nn.Identity(), nn.Identity()]

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    found = losses(full, [Half(), Half()], torch.randn(4, 3))
    assert found == pytest.approx([0.25, 0.5625])


def test_quick_is_quicker_than_the_paper() -> None:
    assert PRESETS["quick"].optimiser.iterations < PRESETS["paper"].optimiser.iterations
