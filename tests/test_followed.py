"""What MLflow and Prefect are told of a run: how far it is, by what name, with which parameters."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from modcap.flows.execution.followers import Follower, Standing
from modcap.flows.execution.progress import Progress
from modcap.flows.quantize import quantize
from modcap.flows.registry import mlflow_runs, version_tags
from modcap.flows.registry.opened_run import _Live
from modcap.flows.registry.params import params_of
from modcap.flows.requests.asked import Request
from modcap.flows.requests.sweep_grid import Sweep
from modcap.flows.sweep import sweep
from modcap.recipe import Recipe


def test_who_follows_hears_the_last_word_and_hinders_nobody() -> None:
    heard: list[int] = []
    slow = threading.Event()

    def tell(standing: Standing) -> None:
        heard.append(standing.done)
        slow.wait(5)
        raise ConnectionError("the page is away")

    follower = Follower(tell, seconds=0)
    for done in range(50):
        follower.at(Standing(done, 100))
    slow.set()
    follower.close(Standing(100, 100))
    assert heard[-1] == 100
    assert len(heard) < 50


def test_what_stays_on_the_terminal_is_logged(tmp_path: Path) -> None:
    logged: list[str] = []
    with (tmp_path / "out").open("w") as out:
        progress = Progress(Console(file=out))
        with progress.logged_by(logged.append):
            progress.note("84 jobs planned\x1b[2J")
        progress.note("afterwards")
    assert [line.split("\x1b")[0][:15] for line in logged] == ["84 jobs planned"]
    assert "\x1b" not in logged[0]


def test_live_metrics_of_a_run() -> None:
    batches: list[dict[str, float]] = []
    live = _Live.__new__(_Live)
    live._client = cast(
        Any,
        SimpleNamespace(
            log_batch=lambda run_id, metrics: batches.append(
                {f"{m.key}@{m.step}" if "group" in m.key else m.key: m.value for m in metrics}
            )
        ),
    )
    live._run_id, live._start, live._errors = "run", 0.0, 0
    live(Standing(1, 4, losses={"a": 1.0, "b": 3.0}))
    live(Standing(2, 4, 9.0, errors=(0.5,)))
    live(Standing(4, 4, errors=(0.5, 0.25)))
    assert batches == [
        {"live/percent_done": 25, "live/loss": 2},
        {"live/percent_done": 50, "live/seconds_left": 9, "live/group_error@0": 0.5},
        {"live/percent_done": 100, "live/group_error@1": 0.25},
    ]


def test_parameters_are_what_was_used() -> None:
    recipe = Recipe.preset("quick", w_bits=2)
    assert recipe.k is None
    open_ = {param.key: param.value for param in params_of(recipe)}
    used = {param.key: param.value for param in params_of(recipe, 4)}
    assert "k" not in open_
    assert used == open_ | {"k": "4"}
    assert (used["k_asked"], used["w_bits"]) == ("auto", "2")
    assert used["tuning"] == str(recipe.tuning_steps)
    assert used["optimiser.iterations"] == str(recipe.optimiser.iterations)
    assert not {"None", "[]"} & set(used.values())


def test_digests_stand_apart_from_what_people_read(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"bits": "W2A4", "source_digest": "ab", "artifact_digest": "cd", "modcap.jobs": "x"}
    monkeypatch.setattr(version_tags, "tags_of", lambda finished: tags)
    found = version_tags.run_tags(cast(Any, None))
    assert list(found) == ["bits", "modcap.jobs", "digest.artifact", "digest.source"]


def test_links_open_the_page_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_runs, "reaching", nullcontext)
    monkeypatch.setattr(mlflow_runs, "experiment_of", lambda client, name: "7")
    monkeypatch.setattr(mlflow_runs, "_address", lambda: "http://127.0.0.1:5000")
    assert mlflow_runs.runs_url("modcap") == "http://127.0.0.1:5000/#/experiments/7/runs"


def test_flow_runs_are_called_by_network_and_bits() -> None:
    recipe = Recipe(w_bits=2, a_bits=4)
    request = Request(checkpoint="s3://b/mobilenet_v2.pt2", recipe=recipe)
    assert str(quantize.flow_run_name).format(request=request) == "mobilenet_v2 W2A4"
    grid = Sweep(requests=(request, request.model_copy(update={"name": "mine"})), k=(0, None))
    assert str(sweep.flow_run_name).format(grid=grid) == "mobilenet_v2, mine k"
