"""The recipe is the one source of what decides a result."""

from __future__ import annotations

import pytest

from modcap.core.errors import InputError, Notice
from modcap.ptq.methods import QDrop
from modcap.ptq.rounding import SoftRounding
from modcap.recipe import PRESETS, Recipe


def test_paper_preset_is_the_published_recipe() -> None:
    paper = PRESETS["paper"]
    optimiser = paper.optimiser
    assert (optimiser.iterations, optimiser.batch_size, paper.calibration) == (20_000, 32, 1024)
    rounding, method = optimiser.rounding, paper.method
    assert isinstance(rounding, SoftRounding)
    assert isinstance(method, QDrop)
    assert (rounding.rate, optimiser.scale_rate) == (1e-3, 4e-5)
    assert (rounding.beta_start, rounding.beta_end, rounding.warm_up) == (20, 2, 0.2)
    assert (method.quantize_probability, paper.first_last_bits) == (0.5, 8)
    assert paper.scale_exponent == 2.4


def test_values_are_laid_over_the_base_field_by_field() -> None:
    base = Recipe.preset("quick")
    changed = Recipe.make({"w_bits": 3, "optimiser": {"iterations": 7}}, base)
    assert (changed.w_bits, changed.optimiser.iterations) == (3, 7)
    assert changed.optimiser.rounding == base.optimiser.rounding


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
        Recipe.preset("slow")


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


def test_choices_are_written_in_short_and_read_from_both_forms() -> None:
    quick = Recipe.preset("quick")
    assert quick.model_dump(mode="json")["method"] == "qdrop"
    assert quick.model_dump(mode="json")["optimiser"]["rounding"] == "straight-through"
    slow = Recipe.preset("quick", optimiser={"rounding": {"rate": 0.03}})
    written = slow.model_dump(mode="json")
    assert written["optimiser"]["rounding"] == {"name": "straight-through", "rate": 0.03}
    assert Recipe.make(written) == slow
    assert isinstance(
        Recipe.preset("quick", optimiser={"rounding": "soft"}).optimiser.rounding, SoftRounding
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"edge_bits": 6}, {"first_last_bits": 6}, r"edge_bits \(now first_last_bits\)"),
        (
            {"optimiser": {"regulariser": 0.1}},
            {"optimiser": {"rounding": {"regulariser": 0.1}}},
            r"optimiser\.regulariser \(now optimiser\.rounding\.regulariser\)",
        ),
        (
            {"optimiser": {"rounding": "straight-through", "rounding_rate": 0.03, "warm_up": 0.3}},
            {"optimiser": {"rounding": {"name": "straight-through", "rate": 0.03}}},
            r"rounding_rate \(now .*rate\), optimiser\.warm_up",
        ),
        (
            {"optimiser": {"keep_probability": 0.25}},
            {"method": {"name": "qdrop", "quantize_probability": 0.25}},
            r"keep_probability \(now method\.quantize_probability\)",
        ),
    ],
)
def test_fields_are_read_under_their_old_names(
    old: dict[str, object], new: dict[str, object], said: str
) -> None:
    with pytest.warns(Notice, match=said):
        assert Recipe.make(old) == Recipe.make(new)
    with pytest.warns(Notice, match=said):
        assert Recipe.model_validate(old) == Recipe.make(new)


def test_a_setting_of_another_rounding_is_refused() -> None:
    with pytest.raises(InputError, match=r"straight-through\.regulariser: Extra inputs"):
        Recipe.preset("quick", optimiser={"rounding": {"regulariser": 0.1}})


def test_digests_are_those_of_the_names_before() -> None:
    """Rows of benchmarks and registered versions carry them."""
    known: tuple[tuple[Recipe, str], ...] = (
        (Recipe.preset("paper"), "44136fa355b3"),
        (Recipe.preset("quick"), "5a1c6a18d711"),
        (Recipe.preset("quick", w_bits=2, a_bits=4, k=0), "467987c91432"),
        (
            Recipe.make(
                {
                    "method": "brecq",
                    "first_last_bits": 6,
                    "optimiser": {"rounding": {"regulariser": 0.1}},
                }
            ),
            "b8b5c818ee77",
        ),
        (
            Recipe.preset(
                "quick", optimiser={"rounding": {"name": "soft", "rate": 3e-2, "decay": True}}
            ),
            "bef2c519d9c5",
        ),
        (Recipe(method={"name": "qdrop", "quantize_probability": 0.25}), "8d91e1592d68"),
    )
    for recipe, digest in known:
        assert recipe.digest.startswith(digest)
