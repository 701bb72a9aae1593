"""Plans: equal work has equal keys, and what differs in the result differs in the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from modcap.core.serialization import Result
from modcap.graph.network import Network, build
from modcap.jobs.cost_model import footprints
from modcap.jobs.job import Cell, Job
from modcap.jobs.kinds.reconstruct import Reconstruct
from modcap.jobs.kinds.select import Select
from modcap.jobs.kinds.whole import Choose, Tune
from modcap.jobs.plan import CellPlan, Plan, plan
from modcap.jobs.waves import segments
from modcap.recipe import Recipe


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(3 if not i else 4, 4, 3, padding=1), nn.ReLU()) for i in range(4)
    ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return build(model.eval(), torch.zeros(2, 3, 8, 8))


def cell(network: Network, **values: Any) -> Cell:
    return Cell(network, "calibration", "evaluation", Recipe.make(values))


def selected(*groups: tuple[int, int]) -> Result:
    return Result(meta={"groups": [list(group) for group in groups]})


def complete(cells: list[Cell], groups: dict[int, list[tuple[int, int]]]) -> Plan:
    """The whole plan, where a cell's selection answers by its k."""
    by_select = {
        planned.select: selected(*groups[c.recipe.k or 0])
        for c, planned in zip(cells, plan(cells, lambda _: None).cells, strict=True)
    }
    return plan(cells, by_select.get)


APART = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
LAST_JOINED = [(0, 1), (1, 2), (2, 3), (3, 5)]


def kinds(found: Plan) -> list[str]:
    return [job.kind for job in found.jobs]


def test_plan_stays_open_until_the_selection_is_known(network: Network) -> None:
    first = plan([cell(network, k=0)], lambda _: None)
    assert first.open
    assert set(kinds(first)) == {"capacity", "select"}
    assert kinds(first).count("capacity") == len(network.partition.names)
    assert not complete([cell(network, k=0)], {0: APART}).open


def test_every_job_comes_after_those_it_needs(network: Network) -> None:
    for schedule in ("sequential", "waves"):
        found = complete([cell(network, k=0, schedule=schedule)], {0: APART})
        seen: set[str] = set()
        for job in found.jobs:
            assert set(job.needs) <= seen
            seen.add(job.key)


def test_cells_share_what_is_equal(network: Network) -> None:
    cells = [cell(network, k=0), cell(network, k=1)]
    both = complete(cells, {0: APART, 1: LAST_JOINED})
    # the prefix of three single modules is shared; the joined group is new
    assert kinds(both).count("reconstruct") == 6
    assert kinds(both).count("capacity") == 5
    assert len({job.key for job in both.jobs}) == len(both.jobs)


def test_edge_layers_are_shared_between_bit_widths(network: Network) -> None:
    cells = [cell(network, k=0, w_bits=bits) for bits in (2, 3, 4)]
    found = complete(cells, {0: APART})
    first = {p.reconstructs[0] for p in found.cells}
    assert len(first) == 1
    assert len({p.reconstructs[1] for p in found.cells}) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_groups_of_waves_see_their_segment_alone(network: Network, share: float) -> None:
    costs = [module.step_cost for module in footprints(network)]
    needs = [i - s.first for s in segments(costs, share) for i in range(s.start, s.stop)]
    waves = cell(network, k=0, schedule="waves", path_share=share)
    found = complete([waves], {0: APART})
    jobs = {job.key: job for job in found.jobs}
    kept = [jobs[key] for key in found.cells[0].reconstructs]
    assert [len(job.needs) for job in kept] == needs
    works = [job.work for job in kept]
    assert [w.start - w.first for w in works if isinstance(w, Reconstruct)] == needs
    assert jobs[found.cells[0].assemble].needs == found.cells[0].corrects
    assert jobs[found.cells[0].corrects[0]].needs == found.cells[0].reconstructs


@pytest.mark.parametrize(
    ("fields", "finish"),
    [
        ({}, []),
        ({"tuning": 7}, ["tune"]),
        ({"correction": True, "tuning": 7}, ["correct", "tune"]),
        ({"schedule": "waves"}, ["correct"]),
        ({"schedule": "waves", "tuning": 7}, ["correct", "tune"]),
        ({"schedule": "waves", "method": "rtn"}, []),
    ],
)
def test_a_cell_ends_as_its_recipe_says(
    network: Network, fields: dict[str, Any], finish: list[str]
) -> None:
    found = complete([cell(network, k=0, **fields)], {0: APART})
    jobs = {job.key: job for job in found.jobs}
    (planned,) = found.cells
    assert [jobs[key].kind for key in planned.finish] == finish
    needs = planned.reconstructs
    for key in (*planned.finish, planned.assemble):
        assert jobs[key].needs == needs
        needs = (key,)


def test_shared_prefixes_add_one_job_per_new_group(network: Network) -> None:
    middle, both = [(0, 1), (1, 3), (3, 4), (4, 5)], [(0, 1), (1, 3), (3, 5)]
    cells = [cell(network, k=k, shared_prefix=True) for k in (0, 1, 2)]
    found = complete(cells, {0: APART, 1: middle, 2: both})
    assert kinds(found).count("reconstruct") == 5 + 1 + 1
    own = [cell(network, k=k) for k in (0, 1, 2)]
    assert kinds(complete(own, {0: APART, 1: middle, 2: both})).count("reconstruct") == 5 + 3 + 1


def test_first_group_is_shared_between_schedules(network: Network) -> None:
    cells = [cell(network, k=0, schedule=s) for s in ("sequential", "waves")]
    found = complete(cells, {0: APART})
    a, b = found.cells
    assert a.reconstructs[0] == b.reconstructs[0]
    assert a.reconstructs[3] != b.reconstructs[3]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"w_bits": 3},
        {"a_bits": 3},
        {"method": "brecq"},
        {"threads": 2},
        {"optimiser": {"iterations": 7}},
        {"scale_exponent": 2.0},
    ],
)
def test_whatever_decides_the_result_changes_the_key(
    network: Network, change: dict[str, Any]
) -> None:
    cells = [cell(network, k=0), cell(network, k=0, **change)]
    a, b = complete(cells, {0: APART}).cells
    assert a.reconstructs[2] != b.reconstructs[2]


def test_label_does_not_change_the_key() -> None:
    one, two = (Select(selection="top-k", k=k) for k in (1, 2))
    a = Job(one, {"network": "n"}, label="a")
    assert a.key == Job(one, {"network": "n"}, label="b").key
    assert a.key != Job(two, {"network": "n"}).key
    assert a.key != Job(one, {"network": "m"}).key
    assert a.key != Job(one, {"network": "n"}, needs=("x",)).key


def test_iterations_per_module_grow_with_the_group_and_share_the_single_modules(
    network: Network,
) -> None:
    cells = [
        cell(network, k=1, iterations_per=per, optimiser={"iterations": 7})
        for per in ("group", "module")
    ]
    group, module = complete(cells, {1: LAST_JOINED}).cells
    assert group.reconstructs[:3] == module.reconstructs[:3]
    jobs = {job.key: job for job in complete(cells, {1: LAST_JOINED}).jobs}
    steps = [jobs[p.reconstructs[3]].work.steps for p in (group, module)]
    assert steps == [7, 14]


BOTH_JOINED = [(0, 1), (1, 2), (2, 5)]
SIDE_BY_SIDE = {"schedule": "waves", "path_share": 0.0}


@pytest.mark.parametrize(
    ("fields", "compared"),
    [
        (SIDE_BY_SIDE, [BOTH_JOINED]),
        (SIDE_BY_SIDE | {"tuning": 14}, [BOTH_JOINED]),
        (SIDE_BY_SIDE | {"tuning": 14, "k_search": 0.6}, [BOTH_JOINED, APART]),
        (SIDE_BY_SIDE | {"tuning": 40}, [BOTH_JOINED]),
        (SIDE_BY_SIDE | {"tuning": 40, "k_search": 0.7}, [BOTH_JOINED, APART]),
        (SIDE_BY_SIDE | {"tuning": 40, "k_search": 2}, [BOTH_JOINED, APART, LAST_JOINED]),
        (SIDE_BY_SIDE | {"tuning": 40, "k_search": 0}, [BOTH_JOINED]),
        ({"k_search": 0.1}, [BOTH_JOINED]),
        ({"k_search": 2}, [BOTH_JOINED, APART, LAST_JOINED]),
        ({"k_search": 2, "tuning": 2}, [BOTH_JOINED, APART, LAST_JOINED]),  # too short for trials
    ],
)
def test_as_many_k_are_compared_as_the_recipe_pays_for(
    network: Network, fields: dict[str, Any], compared: list[list[tuple[int, int]]]
) -> None:
    auto = cell(network, optimiser={"iterations": 10}, **fields)
    one = cell(network, optimiser={"iterations": 10}, **fields | {"k": 2})
    select, of_one = plan([auto, one], lambda _: None).cells
    candidates = [[list(g) for g in groups] for groups in (BOTH_JOINED, APART, LAST_JOINED)]
    known = {
        select.select: Result(meta={"groups": candidates[0], "candidates": candidates}),
        of_one.select: selected(*BOTH_JOINED),
    }
    found = plan([auto], known.get)
    chooses = [job for job in found.jobs if isinstance(job.work, Choose)]
    assert len(chooses) == (len(compared) > 1)
    assert found.open == bool(chooses)
    for job in chooses:
        assert isinstance(job.work, Choose)
        assert [list(candidate.groups) for candidate in job.work.candidates] == compared
        assert job.needs[0] == select.select
        ends = trials_of(found, compared) if auto.recipe.trial_steps else ends_of(found, compared)
        assert job.needs == (select.select, *ends)
        known[job.key] = Result(meta={"chosen": 0})
    work, single = (optimisation(plan([c], known.get)) for c in (auto, one))
    assert work <= (1 + auto.recipe.k_search) * single


def span_of(job: Job) -> tuple[int, int]:
    assert isinstance(job.work, Reconstruct)
    return job.work.start, job.work.stop


def ends_of(found: Plan, compared: list[list[tuple[int, int]]]) -> list[str]:
    """The jobs that say what became of each module, of each way that is compared."""
    jobs = {job.key: job for job in found.jobs}
    corrections = list(found.cells[0].corrects)
    made = [jobs[key].needs for key in corrections]
    if corrections:
        groups = [[span_of(jobs[k]) for k in keys] for keys in made]
        assert groups == compared
        return corrections
    spans = {}
    for job in found.jobs:
        if isinstance(job.work, Reconstruct):
            spans[(*span_of(job), job.needs)] = job.key
    keys: list[str] = []
    for groups in compared:
        own: list[str] = []
        for start, stop in groups:
            own.append(spans[start, stop, tuple(own)])
        keys += own
    return keys


def trials_of(found: Plan, compared: list[list[tuple[int, int]]]) -> list[str]:
    """The short tuning of each way that is compared."""
    jobs = {job.key: job for job in found.jobs}
    trials = list(found.cells[0].trials)
    assert [jobs[key].needs[0] for key in trials] == ends_of(found, compared)
    assert [jobs[key].label for key in trials] == [f"try k={5 - len(g)} " for g in compared]
    steps = found.cells[0].cell.recipe.trial_steps
    assert {jobs[key].work.steps for key in trials} == {steps}
    return trials


def optimisation(found: Plan) -> float:
    """Steps times modules, of everything; a step of tuning costs half of one of every module."""
    total = 0.0
    for work in (job.work for job in found.jobs):
        if isinstance(work, Reconstruct):
            total += work.steps * (work.stop - work.start)
        elif isinstance(work, Tune):
            total += work.steps * 0.5 * 5
    return total


@dataclass
class Decided:
    """A cell that compares two k, of which the second, APART, is chosen."""

    auto: Cell
    select: str
    known: dict[str, Result]
    before: CellPlan
    final: Plan


def decided(network: Network) -> Decided:
    auto = cell(network, tuning=20_000, **SIDE_BY_SIDE)
    (first,) = plan([auto], lambda _: None).cells
    candidates = [[list(g) for g in groups] for groups in (LAST_JOINED, APART)]
    known = {first.select: Result(meta={"groups": candidates[0], "candidates": candidates})}
    (before,) = plan([auto], known.get).cells
    known[before.select] = Result(meta={"chosen": 1})
    return Decided(auto, first.select, known, before, plan([auto], known.get))


def test_a_cell_has_the_groups_of_the_k_that_was_chosen(network: Network) -> None:
    made = decided(network)
    before, final = made.before, made.final
    (after,) = final.cells
    assert not before.assemble
    assert not final.open
    assert after.select == before.select
    assert list(after.groups) == APART
    assert len(after.reconstructs) == 5
    assert set(after.reconstructs) < final.reconstructions(after)  # the joined group, too
    known = made.known | {made.select: selected(*APART)}  # as where k was given
    (given,) = plan([made.auto], known.get).cells
    assert (given.tune, given.assemble) == (after.tune, after.assemble)


def test_what_a_decision_leads_to_waits_for_it(network: Network) -> None:
    made = decided(network)
    final = made.final
    (after,) = final.cells
    assert final.waits[after.tune][-1] == after.select
    assert {final.waits[key][-1] for key in final.reconstructions(after)} == {made.select}
    places = {job.key: place for place, job in enumerate(final.jobs)}
    assert all(places[key] < places[job.key] for job in final.jobs for key in final.waits[job.key])


@pytest.mark.parametrize("method", ["rtn", "qdrop"])
def test_all_that_sums_activations_knows_its_threads(network: Network, method: str) -> None:
    """Another number of threads adds up in another order: other last bits."""
    keys = []
    for threads in (1, 2):
        asked = cell(network, k=0, method=method, capacity="data-dependent", threads=threads)
        jobs = complete([asked], {0: APART}).jobs
        keys.append({job.key for job in jobs if job.kind != "select"})
    one, two = keys
    assert not one & two
