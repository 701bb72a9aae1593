"""Plans from an outline are those from the network; what is said of a checkpoint survives JSON."""

from __future__ import annotations

import json

import pytest

from modcap.flows.requests.asked import Request
from modcap.flows.requests.description import Description, describe, ready
from modcap.flows.requests.request import Prepared, prepare, prepare_all
from modcap.jobs.cost_model import evaluation_memory, footprints
from modcap.jobs.outline import Outline, outline_of
from modcap.jobs.plan import plan
from modcap.recipe import Recipe
from tests.integration.commands import ROOT

RECIPES = (
    Recipe.preset("quick", w_bits=4, calibration=32),
    Recipe.preset("quick", w_bits=2, method="rtn", k=0, calibration=32, seed=1),
    Recipe.preset("quick", w_bits=3, schedule="waves", calibration=48),
)


def requests() -> list[Request]:
    return [
        Request(
            checkpoint=str(ROOT / "examples/fashion_mnist/checkpoints/vgg_tiny.safetensors"),
            arch="modcap.zoo:vgg_tiny",
            data="fashion-mnist",
            eval_images=50,
            name=f"outline-{number}",
            recipe=recipe,
        )
        for number, recipe in enumerate(RECIPES)
    ]


@pytest.fixture(scope="module")
def prepared() -> list[Prepared]:
    return prepare_all(requests())


def test_together_is_as_one_by_one(prepared: list[Prepared]) -> None:
    for request, found in zip(requests(), prepared, strict=True):
        alone = prepare(request)
        assert alone.request == found.request
        assert alone.source == found.source
        assert alone.network.digest == found.network.digest
        assert alone.calibration.digest == found.calibration.digest == found.cell.calibration
        assert alone.cell.evaluation == found.cell.evaluation
    assert prepared[0].cell.calibration != prepared[1].cell.calibration


def test_the_same_jobs_follow_from_what_is_said(prepared: list[Prepared]) -> None:
    said = json.loads(json.dumps(describe(prepared).model_dump(mode="json")))
    found = ready(Description.model_validate(said))
    for before, after in zip(prepared, found, strict=True):
        assert (after.request, after.source, after.fp_bytes) == (
            before.request,
            before.source,
            before.fp_bytes,
        )
        assert after.cell.bits == before.cell.bits
        assert after.cell.modules == before.cell.modules
    known = plan([each.cell for each in prepared], lambda _: None)
    same = plan([each.cell for each in found], lambda _: None)
    assert [job.key for job in same.jobs] == [job.key for job in known.jobs]
    assert [job.room for job in same.jobs] == [job.room for job in known.jobs]


def test_estimates_are_those_of_the_network(prepared: list[Prepared]) -> None:
    network = prepared[0].network
    outline = outline_of(network)
    assert outline_of(outline) is outline
    assert footprints(outline) == footprints(network)
    assert evaluation_memory(outline) == evaluation_memory(network)


def test_an_outline_is_whole(prepared: list[Prepared]) -> None:
    values = outline_of(prepared[0].network).model_dump(mode="json")
    assert Outline.model_validate(values) == outline_of(prepared[0].network)
    for wrong in ({"paths": values["paths"][1:]}, {"digest": "../x"}, {"footprints": []}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "digest" in wrong else "module"):
            Outline.model_validate(values | wrong)
