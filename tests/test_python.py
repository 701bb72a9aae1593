"""What a person sees in Python: batches go in, a bar, a few lines and a page come out."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import modcap
from modcap.api.progress_bar import ProgressBar
from tests.networks import convolutions
from tests.test_maps import SIZE, Pyramid

X = torch.linspace(-1, 1, 16 * 3 * 9 * 9).reshape(16, 3, 9, 9)
STEPS: Any = {"iterations": 3, "batch_size": 8}


def small(images: Any, calibration: int = 16, **given: Any) -> modcap.Quantized:
    recipe = modcap.Recipe.preset(
        "quick", w_bits=4, k=1, homogeneity="any", optimiser=STEPS, calibration=calibration
    )
    return modcap.quantize(convolutions(bias=True), images, recipe, **given)


@pytest.fixture(scope="module")
def done() -> modcap.Quantized:
    return small(X)


def test_batches_are_as_good_as_one_tensor(done: modcap.Quantized) -> None:
    labelled = DataLoader(TensorDataset(X, torch.zeros(16)), batch_size=5)
    for given in (DataLoader(TensorDataset(X), batch_size=7), labelled, [X[:9], X[9:]], iter([X])):
        assert small(given).artifact == done.artifact


def test_no_more_batches_are_asked_for_than_calibrate(done: modcap.Quantized) -> None:
    asked: list[int] = []

    def endless() -> Iterator[tuple[Tensor, str]]:
        while True:
            asked.append(len(asked))
            yield X[4 * len(asked) - 4 :][:4], "labels of any kind"

    assert small(endless()).artifact == done.artifact
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_threads_stay(threads: int) -> None:
    before = torch.get_num_threads()
    recipe = modcap.Recipe.preset("quick", method="rtn", threads=threads)
    try:
        torch.set_num_threads(3)
        modcap.quantize(convolutions(bias=True), X, recipe)
        assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="stop"):
            small(X, progress=_stop)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def _stop(*_: Any) -> None:
    raise RuntimeError("stop")


def test_it_prints_itself(done: modcap.Quantized) -> None:
    lines = str(done).splitlines()
    assert 7 <= len(lines) <= 10
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "W4A4 by qdrop" in text
    assert f"{len(done.modules)} in {len(done.groups)} groups" in text
    assert "on 16 calibration images" in text


def test_its_page(done: modcap.Quantized, tmp_path: Path) -> None:
    done.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Agreement, full precision → quantized" in page
    assert "modcap.quantize(model, images, recipe)" in page
    assert "Left out: the artifact" not in page
    with pytest.raises(modcap.InputError):
        done.report(tmp_path / "nowhere" / "page.html")


def test_a_page_needs_packages_that_may_be_missing(
    done: modcap.Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("modcap.flows.reports")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "modcap.api.page", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(modcap.InputError, match=r"modcap\[cluster\]"):
        done.report(tmp_path / "page.html")


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_nothing_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, done: modcap.Quantized
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for screen, drawn in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", screen)
        assert small(X).artifact == done.artifact
        assert bool(screen.getvalue()) is drawn
    monkeypatch.setattr(sys, "stderr", Screen())
    small(X, progress=False)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_without_rich_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with ProgressBar() as bar:
        bar.planned(3, 1)
        bar.ended()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_metric_is_told_by_name() -> None:
    recipe = modcap.Recipe.preset("quick", w_bits=8, a_bits=8, method="rtn")
    images = torch.randn(4, *SIZE)
    found = modcap.quantize(Pyramid().eval(), images, recipe)
    assert (found.scale.metric, found.full) == ("error", 0.0)
    assert "outputs:" in str(found)
    own = "tests.test_metrics:disagreement"
    done = modcap.quantize(convolutions(bias=True), X, recipe, metric=own)
    assert (done.scale.metric, done.scale.metric_title) == (own, "changed %")
    assert "full precision 0.00 %" in str(done)
    with pytest.raises(modcap.InputError, match="top1 needs labels"):
        modcap.quantize(convolutions(bias=True), X, recipe, metric="top1")
