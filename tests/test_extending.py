"""The examples of docs/extending.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field, create_model

from modcap.api import quantize
from modcap.core.named import reading, sparse
from modcap.data import sources
from modcap.data.image_set import ImageSet
from modcap.data.preprocess import Preprocess
from modcap.export import EXPORTERS, Export, save
from modcap.flows.requests.asked import known_formats
from modcap.jobs.job import Cell
from modcap.jobs.run_job import run_job
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.bit_policy import BitPolicy
from modcap.ptq.methods import Brecq, Method
from modcap.ptq.metrics import METRICS
from modcap.ptq.optimise import Inputs
from modcap.ptq.reconstruct import calibrate, reconstruct
from modcap.ptq.rounding import Rounding, SoftRounding, StraightThroughRounding
from modcap.ptq.settings import Optimiser, flat_fields
from modcap.quantization.bits import Bits
from modcap.quantization.insert import insert_quantizers, layers_of
from modcap.recipe import Recipe
from tests.golden import small_network
from tests.rooms import ROOT


@pytest.fixture(scope="module")
def examples() -> dict[str, Any]:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "examples"}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "docs/extending.md", "exec", dont_inherit=True), names)
    return names


def error_of(method: Method, rounding: Rounding, iterations: int) -> float:
    network, x = small_network()
    module = network.partition.modules[1]
    x = network.partition.modules[0](x)
    group = [insert_quantizers(module, [Bits(2, 8)] * 2)]
    calibrate(group, x, 2.4)
    settings = Optimiser(iterations=iterations, batch_size=8)
    settings = settings.model_copy(update={"rounding": rounding})
    with torch.enable_grad():
        return reconstruct(group, Inputs(x, x, module(x)), method, settings, 0).error


def test_a_rounding(examples: dict[str, Any]) -> None:
    rounding = examples["ChannelOffset"](rate=3e-2)
    assert error_of(Brecq(), rounding, 60) < error_of(Brecq(), rounding, 0)
    listed = SoftRounding | type(rounding)
    union = Annotated[listed, Field(discriminator="name"), reading("soft")]
    optimiser = create_model("Extended", __base__=Optimiser, rounding=(union, SoftRounding()))
    assert optimiser(rounding="channel-offset").rounding == type(rounding)()
    given = optimiser(rounding={"name": "channel-offset", "rate": 3e-2})
    assert given.rounding == rounding
    assert given.model_dump(mode="json")["rounding"] == {"name": "channel-offset", "rate": 3e-2}
    fields = flat_fields(given, Brecq())
    assert (fields["rounding"], fields["rounding_rate"]) == ("channel-offset", 3e-2)
    assert "regulariser" not in fields


def test_a_method(examples: dict[str, Any]) -> None:
    method = examples["FullPrecisionInput"]()
    rounding = StraightThroughRounding()
    assert error_of(method, rounding, 60) < error_of(method, rounding, 0)


def test_a_kind_of_job(examples: dict[str, Any]) -> None:
    network, x = small_network()
    images = ImageSet(x, torch.zeros(len(x), dtype=torch.int64), (0.0,), (1.0,))
    cache = WorkerCache.holding({network.digest: network, images.digest: images})
    errors = []
    for bits in (2, 8):
        cell = Cell(network, images.digest, images.digest, Recipe(w_bits=bits, a_bits=8))
        job = examples["module_error_job"](cell, 2)
        assert job.kind == "module-error"
        errors.append(run_job(job, cache, []).meta["error"])
    assert errors[0] > 10 * errors[1]


def test_an_export_format(
    examples: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORTERS, "integers", examples["INTEGERS"])
    network, x = small_network()
    done = quantize(network, x, Recipe(w_bits=3, a_bits=8, method="rtn", k=0))
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    assert done.export("integers", one)["layers"] == len(layers_of(done.network.chain))
    save(Export(done.artifact), "integers", other)
    assert one.read_bytes() == other.read_bytes()
    with np.load(one) as written:
        for layer, integers in zip(layers_of(done.network.chain), written.values(), strict=True):
            assert layer.integers is not None
            assert np.array_equal(integers, layer.integers.numpy())
    assert known_formats(("integers",)) == ("integers",)


def test_bits_per_layer(examples: dict[str, Any]) -> None:
    class WithEnds(Recipe):
        ends: int = sparse(1)

        @property
        def bit_policy(self) -> BitPolicy:
            return examples["WideEnds"](**vars(super().bit_policy), ends=self.ends)

    network, x = small_network()
    done = quantize(network, x, WithEnds(w_bits=3, a_bits=4, method="rtn", k=0, ends=2))
    bits = [[layer.bits for layer in layers_of([module])] for module in done.network.chain]
    assert {own for layers in (*bits[:2], *bits[-2:]) for own in layers} == {8}
    assert {own for layers in bits[2:-2] for own in layers} == {3}


def test_a_source_of_data(
    examples: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "some.npy", np.zeros((40, 1, 8, 8), np.uint8))
    np.save(tmp_path / "some.labels.npy", np.arange(40))
    monkeypatch.setattr(sources, "SOURCES", (examples["TWO_FILES"], *sources.SOURCES))
    preprocess = Preprocess(mean=(0.5,), std=(0.5,))
    spec = str(tmp_path / "some.npy")
    pool = sources.load(spec, split="calibration", preprocess=preprocess)
    tests = sources.load(spec, split="evaluation", preprocess=preprocess, limit=7)
    assert (len(pool), len(tests)) == (20, 7)
    assert not set(pool.labels) & set(tests.labels)


def test_a_metric(examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own = examples["CORRELATION"]
    monkeypatch.setitem(METRICS, own.name, own)
    network, x = small_network()
    recipe = Recipe(w_bits=8, a_bits=8, method="rtn", k=0)
    done = quantize(network, x, recipe, metric="correlation")
    assert (done.scale.metric_title, done.full) == ("correlation", 1.0)
    assert 0.9 < done.value < 1
    assert "correlation:" in str(done)
