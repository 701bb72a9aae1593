"""Bits that are chosen: sensitivities as shared jobs, one integer programme, its bounds."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modcap
from modcap.core.errors import InputError
from modcap.core.serialization import Result
from modcap.data.image_set import ImageSet
from modcap.export.artifact_size import artifact_bytes
from modcap.flows.reports import plan_estimate
from modcap.flows.requests.asked import Request
from modcap.flows.requests.sweep_grid import Sweep
from modcap.graph.network import Network, build
from modcap.jobs.cost_model import ModuleTimes
from modcap.jobs.job import Cell
from modcap.jobs.kinds.allocate import chosen_bits
from modcap.jobs.plan import Plan, plan
from modcap.jobs.run_job import run_job
from modcap.jobs.simulate import simulate
from modcap.jobs.worker_cache import WorkerCache
from modcap.ptq.bit_allocation import least, total
from modcap.ptq.sensitivity import Cost, Prediction, cost_of_network, layer_errors
from modcap.quantization.bits import FLOAT, Bits
from modcap.recipe import Recipe
from tests.golden import small_network
from tests.rooms import ROOT

RTN: dict[str, Any] = {
    **{"method": "rtn", "k": 0, "calibration": 32, "w_bits": "auto"},
    "scale_exponent": 2.0,  # found in half the time
}
NETWORK, IMAGES = small_network()
SET = ImageSet(IMAGES, torch.zeros(32, dtype=torch.int64), (0.0,), (1.0,))
WEIGHTS = [36, 216, 324, 324, 324, 432, 576, 24]


def cell(**fields: Any) -> Cell:
    return Cell(NETWORK, SET.digest, SET.digest, Recipe.preset("quick", **RTN | fields))


KNOWN: dict[str, Result] = {}


def run(
    *cells: Cell, results: dict[str, Result] = KNOWN
) -> tuple[Plan, dict[str, Result]]:  # what is done is done for all tests
    bench = WorkerCache.holding({NETWORK.digest: NETWORK, SET.digest: SET})
    while todo := [j for j in plan(cells, results.get).jobs if j.key not in results]:
        for job in todo:
            results[job.key] = run_job(job, bench, [results[key] for key in job.needs])
    return plan(cells, results.get), results


BUDGETS = (2.5, 3.0, 4.0, 8.0)


@pytest.fixture(scope="module")
def made() -> tuple[Plan, dict[str, Result]]:
    return run(*(cell(budget=budget) for budget in BUDGETS))


def tables(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    count = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count))
    scales = draw(st.lists(st.floats(1e-6, 10), min_size=count, max_size=count))
    costs = [[float(size * w) for w in (2, 3, 5, 8)] for size in sizes]
    return [[scale * 4.0**-w for w in (2, 3, 5, 8)] for scale in scales], costs


@settings(max_examples=40, deadline=None)
@given(st.composite(tables)(), st.floats(0, 1))
def test_the_programme_finds_what_trying_all_finds(
    given_tables: tuple[list[list[float]], list[list[float]]], share: float
) -> None:
    for goal, use in (given_tables, given_tables[::-1]):
        low, high = sum(map(min, use)), sum(map(max, use))
        most = low + share * (high - low)
        ways = itertools.product(range(4), repeat=len(goal))
        sums = [total(goal, way) for way in ways if total(use, way) <= most]
        found = least(goal, use, most)
        if found is None:
            assert not sums
            continue
        assert total(use, found) <= most
        assert total(goal, found) <= min(sums) * (1 + 1e-5) + 1e-12


def test_of_equal_choices_one_is_taken_by_rule() -> None:
    assert least([[0.4, 0.1]] * 4, [[2.0, 4.0]] * 4, 12.0) == [1, 1, 0, 0], "earlier layers first"
    assert least([[0.0, 0.0]] * 2, [[2.0, 4.0]] * 2, 8.0) == [0, 0], "no bit that mends nothing"
    assert least([[0.4, 0.1]], [[2.0, 4.0]], 1.0) is None


def test_sums_say_how_many_answers_change() -> None:
    points = {0.1: Cost(0.05, 0.02), 0.2: Cost(0.3, 0.01), 0.4: Cost(0.2, 0.2)}
    known = Prediction.of(list(points), list(points.values()))
    assert known.shares == pytest.approx((0.015, 0.015, 0.2)), "never falls"
    assert known.errors == pytest.approx((0.05, 0.25, 0.25))
    assert known.share(0.3) == pytest.approx(0.1075)
    assert (known.share(0), known.share(9)) == pytest.approx((0.015, 0.2))
    assert known.largest_sum(0.1075) == pytest.approx(0.3)
    assert known.largest_sum(0.5) == float("inf")
    assert known.largest_sum(0.01) == -float("inf")
    assert Prediction.of([0.1], [Cost(0.1, None)]).share(0.1) is None


def test_a_sensitivity_is_the_error_of_one_layer_alone() -> None:
    modules = NETWORK.partition.modules
    target, x = NETWORK(IMAGES), modules[0](IMAGES)
    trials = [[Bits(width, 0), FLOAT] for width in (2, 4, 8)]
    errors = layer_errors(modules[1:], trials, x, target, 2.4)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[2] > 0
    both = layer_errors(modules[1:], [[Bits(2, 0)] * 2, [FLOAT] * 2], x, target, 2.4)
    assert both[0] > errors[0]
    assert both[1] < 1e-12


def test_the_cost_of_a_network_is_that_of_the_artifact() -> None:
    recipe = Recipe.preset("quick", **RTN | {"w_bits": 3}, correction=True)
    made = modcap.quantize(NETWORK, IMAGES, recipe)
    bits, target = recipe.bit_policy.resolve(NETWORK), NETWORK(IMAGES)
    cost = cost_of_network(NETWORK.partition.modules, bits, IMAGES, target, recipe.scale_exponent)
    assert cost.error == pytest.approx(made.losses[-1], rel=1e-6)
    changed = made.network(IMAGES).argmax(1) != target.argmax(1)
    assert cost.disagreement == pytest.approx(float(changed.double().mean()))


def test_sensitivities_are_jobs_that_all_budgets_share(
    made: tuple[Plan, dict[str, Result]],
) -> None:
    planned, results = made
    kinds = Counter(job.kind for job in planned.jobs)
    assert (kinds["sensitivity"], kinds["allocate"]) == (len(WEIGHTS) + 1, len(BUDGETS))
    assert len({cell.sensitivities for cell in planned.cells}) == 1
    first = plan([cell(budget=3.0)], lambda _: None)
    assert first.open
    assert Counter(job.kind for job in first.jobs) == {"sensitivity": 9, "allocate": 1}
    assert {job.key for job in first.jobs} <= results.keys(), "the same keys in every sweep"
    without = plan([cell(budget=3.0, a_bits="none")], lambda _: None)
    assert len({job.key for job in without.jobs} & {job.key for job in first.jobs}) == len(WEIGHTS)
    assert first.needed(first.cells[0]) == {job.key for job in first.jobs}


def test_budgets_are_kept_and_used(made: tuple[Plan, dict[str, Result]]) -> None:
    planned, results = made
    errors = []
    for budget, own in zip(BUDGETS, planned.cells, strict=True):
        said = results[own.allocate].meta
        bits = chosen_bits(results[own.allocate])
        assert tuple(map(tuple, own.cell.bits)) == bits
        flat = [each.weight for layers in bits for each in layers]
        average = sum(w * n for w, n in zip(flat, WEIGHTS, strict=True)) / sum(WEIGHTS)
        assert said["average_bits"] == pytest.approx(average)
        assert budget - 0.5 < average <= budget
        assert said["predicted_bytes"] == results[own.assemble].meta["artifact_bytes"]
        assert 0 <= said["predicted_drop"] <= 100
        errors.append(said["predicted_error"])
    assert errors == sorted(errors, reverse=True)


def test_what_comes_after_waits_for_the_choice(made: tuple[Plan, dict[str, Result]]) -> None:
    planned, _ = made
    assert planned.cells[0].allocate in planned.waits[planned.cells[0].select]
    for own in planned.cells:
        assert any(own.allocate in planned.waits[key] for key in own.reconstructs)
    seconds = {job.key: 1.0 for job in planned.jobs}
    assert simulate(planned.jobs, planned.waits, seconds, 99).makespan == 6


@pytest.mark.parametrize("by", ["parameters", "random"])
def test_other_ways_to_choose_measure_nothing(by: str) -> None:
    planned, results = run(cell(budget=3.0, allocation=by), cell(budget=3.0, allocation=by, seed=1))
    assert "sensitivity" not in {job.kind for job in planned.jobs}
    one, two = (results[own.allocate].meta for own in planned.cells)
    assert max(one["average_bits"], two["average_bits"]) <= 3
    assert "predicted_drop" not in one
    assert (one["bits"] == two["bits"]) is (by == "parameters")
    if by == "parameters":  # one more bit is worth the same everywhere, and costs less there
        flat = [own[0] for layers in one["bits"] for own in layers]
        ordered = [w for _, w in sorted(zip(WEIGHTS, flat, strict=True), key=lambda p: p[0])]
        assert ordered == sorted(ordered, reverse=True)


def test_bytes_are_kept_to_the_byte() -> None:
    least_bytes = artifact_bytes(NETWORK, [[Bits(2, 4)] * n for n in NETWORK.layers])
    for most in (least_bytes + 120, least_bytes + 400):
        planned, results = run(cell(max_bytes=most))
        size = results[planned.cells[0].assemble].meta["artifact_bytes"]
        assert most - 60 < size <= most
    with pytest.raises(InputError, match=r"max_bytes 2000: the smallest artifact .* has \d+ bytes"):
        modcap.quantize(NETWORK, IMAGES, Recipe.preset("quick", **RTN, max_bytes=2000))


def test_a_drop_is_predicted_to_hold_by_the_smallest_network() -> None:
    planned, results = run(cell(max_drop=100.0, a_bits="none"), cell(max_drop=20.0, a_bits="none"))
    loose, tight = (results[own.allocate].meta for own in planned.cells)
    assert {own[0] for layers in loose["bits"] for own in layers} == {2}, "all that is allowed"
    assert tight["predicted_drop"] <= 20
    assert tight["average_bits"] >= loose["average_bits"]


def test_names_fix_bits_within_the_choice() -> None:
    fields = {"bits": {"7": 8, "2.one": {"w": 3}}, "float": ["3"], "budget": 2.5}
    planned, results = run(cell(**fields))
    bits = planned.cells[0].cell.bits
    assert bits[4] == [Bits(8, 8)]
    assert bits[1][0] == Bits(3, 4)
    assert bits[2] == [Bits(0, 0)] * 2
    assert bits[0][0].activation == 8, "activations are as they are without a choice"
    assert results[planned.cells[0].allocate].meta["average_bits"] <= 2.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"w_bits": "auto"}, r"w_bits auto needs one bound: .*\(given: none\)"),
        ({"w_bits": "auto", "budget": 3, "max_drop": 1}, r"\(given: budget and max_drop\)"),
        ({"budget": 3}, "budget is for w_bits auto"),
        ({"w_bits": "auto", "budget": 9}, "budget: .*less than or equal to 8"),
        ({"w_bits": "some"}, "w_bits: Input should be a whole number, or auto"),
        (
            {"w_bits": "auto", "max_drop": 1, "allocation": "random"},
            "max_drop goes by measured sensitivities",
        ),
    ],
)
def test_bounds_that_are_no_bounds_are_refused_in_one_line(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Recipe.make(fields)
    assert "\n" not in str(caught.value)


def test_bounds_that_nothing_meets_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modcap.jobs.kinds.sensitivity.LayerSensitivity.run", None)
    recipe = Recipe.preset("quick", **RTN, budget=2.0, bits={"4": 8})
    with pytest.raises(InputError, match=r"at least 4\.6\d* on average: give 4\.6\d* or more"):
        modcap.quantize(NETWORK, IMAGES, recipe)


def test_a_drop_that_nothing_meets_says_what_is_possible() -> None:
    (*measured, allocate) = plan([cell(max_drop=1.0)], lambda _: None).jobs
    said = Result(meta={"errors": [0.1] * 7, "disagreements": [0.03] * 7})
    bench = WorkerCache.holding({NETWORK.digest: NETWORK, SET.digest: SET})
    with pytest.raises(
        InputError, match="max_drop 1: with all the bits that may be chosen, 3 % of answers"
    ):
        run_job(allocate, bench, [said] * len(measured))


def test_the_size_of_an_artifact_is_known_before_it_is_made() -> None:
    for fields in ({"a_bits": "none"}, {"float": ["2.*"]}, {"activations": "all"}):
        recipe = Recipe.preset("quick", **RTN | {"w_bits": 3}, **fields)
        bits = recipe.bit_policy.resolve(NETWORK)
        made = modcap.quantize(NETWORK, IMAGES, recipe)
        assert artifact_bytes(NETWORK, bits, recipe.scheme) == len(made.artifact)


def test_results_are_the_same_in_every_run(made: tuple[Plan, dict[str, Result]]) -> None:
    planned, results = made
    again, others = run(cell(budget=3.0), results={})
    before, after = planned.cells[1], again.cells[0]
    assert before.assemble == after.assemble
    assert results[before.allocate].meta["bits"] == others[after.allocate].meta["bits"]
    digests = [r[c.assemble].meta["artifact"] for r, c in ((results, before), (others, after))]
    assert digests[0] == digests[1]


def test_a_network_without_classes_has_no_drop() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 1)).eval()
    network: Network = build(model, IMAGES[:2])
    with pytest.raises(InputError, match="this network has no classes to answer with"):
        modcap.quantize(network, IMAGES, Recipe.preset("quick", **RTN, max_drop=1.0))
    found = modcap.quantize(network, IMAGES, Recipe.preset("quick", **RTN, budget=3.0))
    assert np.isfinite(found.losses[-1])


def test_a_grid_gives_bounds_to_what_chooses_alone() -> None:
    def labels(base: Recipe, **axes: Any) -> list[str]:
        grid = Sweep(requests=(Request(checkpoint="n.pt2"),), **axes)
        return [recipe.bits_label for recipe in grid.recipes(base)]

    usual = Recipe.preset("quick")
    found = labels(usual, w_bits=(3, "auto"), budget=(2.5, 3.0), a_bits=(4, "none"))
    assert found == [
        *("W3A4", "W3A32", "Wauto2.5A4", "Wauto2.5A32", "Wauto3A4", "Wauto3A32"),
    ]
    bounded = Recipe.preset("quick", w_bits="auto", max_bytes=5000)
    assert labels(bounded, w_bits=(4, "auto")) == ["W4A4", "Wauto5000BA4"]
    assert labels(bounded, budget=(3.0,)) == ["Wauto3A4"]
    with pytest.raises(InputError, match="budget is for w_bits auto: name auto among the w_bits"):
        labels(usual, budget=(3.0,))
    with pytest.raises(InputError, match="w_bits auto needs one bound"):
        labels(usual, w_bits=("auto",))


def test_a_plan_shows_bits_as_far_as_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_estimate, "_store", lambda: None)
    monkeypatch.setattr(plan_estimate, "_probe", lambda _: ModuleTimes(*[(1.0,) * 8] * 3, 32, 10))
    file = ROOT / "examples/fashion_mnist/checkpoints/vgg_tiny.safetensors"
    quick = Recipe.preset("quick", **RTN, budget=3.0)
    request = Request(checkpoint=str(file), arch="modcap.zoo:vgg_tiny", recipe=quick)
    said = plan_estimate.describe_plan(Sweep(requests=(request,)), 2, None)
    layers = said["jobs"]["sensitivity"]["planned"] - 1  # one is of the network
    assert said["open"]
    assert said["jobs"]["allocate"] == {"planned": 1, "done": 0}
    assert [cell["layer_bits"] for cell in said["bits"]] == [None]
    by_size = Recipe.make({"allocation": "parameters"}, quick)
    request = request.model_copy(update={"recipe": by_size})
    said = plan_estimate.describe_plan(Sweep(requests=(request,)), 2, None)
    assert not said["open"]
    (own,) = said["bits"]
    assert len(own["layer_bits"]) == layers
    assert own["allocation"]["average_bits"] <= 3
    assert own["allocation"]["predicted_drop"] is None
