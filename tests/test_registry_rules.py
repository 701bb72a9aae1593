"""Whose a name is, what an upgrade makes again, and what is said of where results come from."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.core.serialization import Result
from modcap.flows import scan, sweep
from modcap.flows.execution.job_results import Results
from modcap.flows.registry import owner
from modcap.flows.registry.version_tags import layers_digest
from modcap.flows.reports.cell_record import Finished
from modcap.flows.reports.environments import environments_of, in_words
from modcap.flows.requests.asked import Request
from modcap.flows.requests.scan_policy import Choice, Rule
from modcap.flows.requests.sweep_grid import Sweep
from modcap.jobs.environment import environment
from modcap.jobs.plan import CellPlan
from modcap.recipe import Recipe

SOURCE = {
    "checkpoint": "cats/model.pt2",
    "checkpoint_digest": "ab",
    "architecture": "torchvision:resnet18",
}
TAGS = {
    "source_uri": "cats/model.pt2",
    "source_digest": "ab",
    "architecture": "torchvision:resnet18",
    "bits": "W4A4",
}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    found: list[Mapping[str, str]] = [TAGS]
    monkeypatch.setattr(owner, "_versions", lambda name: found)
    return found


def request(path: str, **fields: Any) -> Request:
    return Request(checkpoint=path, data="fashion-mnist", **fields)


LAYERS = (("conv1",), ("layer1.0", "layer1.1"))


def check(path: str, source: Mapping[str, str], layers: Any = LAYERS, **fields: Any) -> None:
    owner.check_owner(request(path, **fields), source, layers)


def test_a_name_that_nobody_chose_is_one_files(versions: list[Mapping[str, str]]) -> None:
    again = SOURCE | {"checkpoint_digest": "cd"}
    check("cats/model.pt2", again)
    check("x", again | {"checkpoint": "./cats/../cats/model.pt2"})
    check("x", SOURCE | {"checkpoint": "s3://b/model.pt2"})
    birds = again | {"checkpoint": "birds/model.pt2"}
    with pytest.raises(
        InputError, match=r"'model-w4a4' belongs to cats/model.pt2: choose .* --name, or say --for"
    ):
        check("birds/model.pt2", birds)
    check("birds/model.pt2", birds, name="model")
    check("birds/model.pt2", birds, force=True)
    other = again | {"architecture": "timm:vgg"}
    with pytest.raises(InputError, match="holds versions of architecture torchvision:resnet18"):
        check("cats/model.pt2", other)


def test_another_architecture_under_an_old_name_wants_force(
    versions: list[Mapping[str, str]],
) -> None:
    birds = SOURCE | {"checkpoint": "birds/model.pt2", "checkpoint_digest": "cd"}
    other = birds | {"architecture": "timm:vgg"}
    with pytest.raises(InputError, match=r"architecture torchvision:resnet18.* or say --force"):
        check("birds/model.pt2", other, name="model")
    check("birds/model.pt2", other, name="model", force=True)


def test_archives_of_other_layers_are_other_networks(versions: list[Mapping[str, str]]) -> None:
    """Of a .pt2, the architecture says no more than that it is one."""
    layers = layers_digest(["conv1", "layer1.0", "layer1.1"])
    versions[:] = [TAGS | {"architecture": "pt2", "layers_digest": layers}]
    source = SOURCE | {"architecture": "pt2", "checkpoint_digest": "cd"}
    for name in (None, "model"):
        check("cats/model.pt2", source, name=name)
        check("cats/model.pt2", source, [["conv1", "layer1.0"], ["layer1.1"]], name=name)
        with pytest.raises(InputError, match=r"another network.*cats/model.pt2.*--force"):
            check("cats/model.pt2", source, [["features.0"]], name=name)
        check("cats/model.pt2", source, [["features.0"]], name=name, force=True)


def test_quantize_sweep_and_scan_call_a_version_alike() -> None:
    recipe = Recipe(w_bits=3, a_bits=4)
    assert request("s3://b/in/net.v2.pt2", recipe=recipe).model_name == "net.v2-w3a4"
    assert request("net.pt2", recipe=recipe, name="mine").model_name == "mine"
    assert request("net.pt2", recipe=recipe, name="mine").label == "mine"
    choice = Choice(fields={"w_bits": 3, "a_bits": 4})
    assert request("net.pt2", recipe=choice.recipe()).model_name == f"net-{choice.suffix()}"
    mixed = Recipe(w_bits="auto", budget=2.5, a_bits="none")
    assert request("net.pt2", recipe=mixed).model_name == "net-wauto2.5a32"


def finished(recipe: Recipe, **source: str) -> Finished:
    return cast(Finished, SimpleNamespace(source=SOURCE | source, recipe=recipe))


def test_a_name_that_a_scan_gave_is_one_objects_architectures_and_widths(
    versions: list[Mapping[str, str]],
) -> None:
    recipe = Recipe(w_bits=4, a_bits=4)
    owner.check_name(finished(recipe, checkpoint_digest="cd"), "net")
    for source, said in (
        ({"checkpoint": "s3://b/birds/model.pt2"}, "belongs to cats/model.pt2"),
        ({"architecture": "timm:vgg"}, "of architecture torchvision:resnet18, and this one"),
    ):
        with pytest.raises(InputError, match=said):
            owner.check_name(finished(recipe, **source), "net")
    with pytest.raises(InputError, match="versions of bits W4A4, and this one is of W2A4"):
        owner.check_name(finished(Recipe(w_bits=2, a_bits=4)), "net")
    versions.append({})
    with pytest.raises(InputError, match="belongs to somebody else"):
        owner.check_name(finished(recipe), "net")


def test_two_recipes_of_a_rule_make_no_versions_of_one_model() -> None:
    alike = [{"fields": {"w_bits": 4}}, {"fields": {"w_bits": 4, "method": "rtn", "k": 0}}]
    with pytest.raises(InputError, match=r"2 recipes make models called …-w4a\d: give each a name"):
        parse(Rule, {"recipes": alike})
    parse(Rule, {"recipes": [alike[0], alike[1] | {"name": "plain"}]})


def test_a_bad_verdict_does_not_outlive_what_gave_it() -> None:
    noted = b'{"checkpoint": "s3://b/a.pt", "state": "STATE", "permissions": {"made_by": [8, "0"]}}'
    bad, good = noted.replace(b"STATE", b"bad"), noted.replace(b"STATE", b"registered")
    assert scan._noted(bad, {"made_by": [8, "0"]}) is not None
    assert scan._noted(bad, {"made_by": [9, "0"]}) is None
    assert scan._noted(good, {"made_by": [9, "0"]}) is not None


def test_a_sweep_of_another_revision_has_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Sweep(requests=(request("a.pt2"),))
    before = sweep._key(grid, [])
    assert before == sweep._key(grid, [])
    monkeypatch.setattr(sweep, "REVISION", sweep.REVISION + 1)
    assert before != sweep._key(grid, [])


def test_results_of_another_environment_are_named() -> None:
    here, there = environment("cpu"), {"torch": "1.0", "device": "cpu", "processor": "ARM"}
    metas: dict[str, dict[str, Any]] = {
        "select": {"environment": here, "needs": ["old"]},
        "old": {},
        "evaluate": {"environment": here, "needs": ["far"]},
        "far": {"environment": there},
        "full": {"environment": here},
    }
    results = cast(Results, {key: Result(meta=meta) for key, meta in metas.items()})
    cell = CellPlan(cast(Any, None), (), "select", evaluate="evaluate", evaluate_full="full")
    found = environments_of(cell, results)
    assert found[0] == here | {"jobs": 3}
    assert {e["torch"] for e in found[1:]} == {"1.0", "unknown"}
    assert in_words(found).count(";") == 2
    assert here["processor"]


@pytest.mark.parametrize("name", ["a?b", "a@b", "a/b", "a:b", "..", "a'b", "a\nb", "a\tb"])
def test_names_that_an_address_of_the_registry_cannot_hold(name: str) -> None:
    with pytest.raises(InputError, match="a registered model cannot be called"):
        parse(Request, {"checkpoint": "x.pt2", "data": "d", "name": name})


@pytest.mark.parametrize("name", ["a#b", "a b", "a%20b", "net-w4a4"])
def test_names_that_an_address_of_the_registry_holds(name: str) -> None:
    from mlflow.store.artifact.utils.models import _parse_model_uri

    parse(Request, {"checkpoint": "x.pt2", "data": "d", "name": name})
    for address in (f"models:/{name}/1", f"models:/{name}@champion"):
        assert _parse_model_uri(address).name == name


def test_two_runs_that_log_one_dataset_at_once() -> None:
    """The race is MLflow's, between its look whether a dataset is known and its addition."""
    from mlflow.exceptions import MlflowException

    from modcap.flows.registry import publish

    refusals = iter(
        [
            "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id",
            "(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint",
        ]
    )
    logged: list[str] = []

    def log_inputs(run_id: str, _: Any) -> None:
        for refusal in refusals:
            raise MlflowException(refusal)
        logged.append(run_id)

    publish._log_inputs(cast(Any, SimpleNamespace(log_inputs=log_inputs)), "run", [])
    assert logged == ["run"]

    def refuse(*_: Any) -> None:
        raise MlflowException("there is no such run")

    with pytest.raises(MlflowException, match="no such run"):
        publish._log_inputs(cast(Any, SimpleNamespace(log_inputs=refuse)), "run", [])
