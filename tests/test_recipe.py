"""The recipe is the one source of what decides a result."""

from __future__ import annotations

import pytest

from modcap.core.errors import InputError
from modcap.recipe import PRESETS, Recipe


def test_paper_preset_is_the_published_recipe() -> None:
    paper = PRESETS["paper"]
    optimiser = paper.optimiser
    assert (optimiser.iterations, optimiser.batch_size, paper.calibration) == (20_000, 32, 1024)
    assert (optimiser.rounding_rate, optimiser.scale_rate) == (1e-3, 4e-5)
    assert (optimiser.beta_start, optimiser.beta_end, optimiser.warm_up) == (20, 2, 0.2)
    assert (optimiser.keep_probability, paper.edge_bits, paper.scale_exponent) == (0.5, 8, 2.4)


def test_values_are_laid_over_the_base_field_by_field() -> None:
    base = Recipe.preset("quick")
    changed = Recipe.make({"w_bits": 3, "optimiser": {"iterations": 7}}, base)
    assert (changed.w_bits, changed.optimiser.iterations) == (3, 7)
    assert changed.optimiser.rounding_rate == base.optimiser.rounding_rate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"w_bits": 9}, r"^recipe: w_bits: .*less than or equal to 8 \(given: 9\)$"),
        ({"w_bits": 1}, "w_bits"),
        ({"a_bitz": 4}, "a_bitz: Extra inputs"),
        ({"method": "magic"}, "'rtn', 'adaround', 'brecq' or 'qdrop'"),
        ({"optimiser": {"batch_size": 4096}}, "batch_size 4096 is more than the 1024"),
        ({"a_bits": 8, "optimiser": {"precision": "bfloat16"}}, "too coarse for more than 6 bits"),
        ({"device": "cuda", "activation_memory": 1}, "activation_memory is for device cpu"),
        ({"selection": "explicit"}, "^recipe: selection explicit and groups go together"),
        ({"capacity": "none", "k": 2}, "capacity none measures nothing to select by: take k 0"),
    ],
)
def test_wrong_values_are_named_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recipe.make(values)
    assert "\n" not in str(caught.value)


def test_what_learns_nothing_needs_no_whole_batch() -> None:
    assert not Recipe.preset("quick", method="rtn", calibration=8).optimises
    with pytest.raises(InputError, match="batch_size 32 is more than the 8"):
        Recipe.preset("quick", method="rtn", tuning=3, calibration=8)


def test_digest_depends_on_values_alone() -> None:
    assert Recipe(w_bits=3).digest == Recipe.make({"w_bits": 3}).digest
    assert Recipe(w_bits=3).digest != Recipe(w_bits=2).digest


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(InputError, match="quick"):
        Recipe.preset("fast")


def test_how_a_run_ends_follows_the_recipe_unless_it_is_named() -> None:
    for preset, fields, corrects, steps in (
        ("paper", {}, False, 0),
        ("paper", {"schedule": "waves"}, True, 0),
        ("quick", {}, True, 300),
        ("quick", {"schedule": "sequential"}, False, 300),
        ("quick", {"optimiser": {"iterations": 5}}, True, 15),
        ("quick", {"schedule": "waves", "method": "rtn"}, False, 0),
        ("quick", {"schedule": "waves", "correction": False, "tuning": 0}, False, 0),
        ("quick", {"method": "rtn", "correction": True, "tuning": 7}, True, 7),
    ):
        recipe = Recipe.preset(preset, **fields)
        assert (recipe.corrects, recipe.tuning_steps) == (corrects, steps)
