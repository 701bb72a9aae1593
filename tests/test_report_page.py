"""Pages of runs and sweeps: whole without a network, true to their figures, safe from what names
say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from modcap.core.errors import InputError
from modcap.core.serialization import digest
from modcap.export.artifact import unpack_network
from modcap.flows.cli import app
from modcap.flows.reports.command import command_of
from modcap.flows.reports.document import RunReport, SweepReport, report_of
from modcap.flows.reports.layers import layers_in
from modcap.flows.reports.page import page_of
from modcap.quantization.insert import quantizers

ARTIFACT = (Path(__file__).parent / "data/format1.artifact.safetensors").read_bytes()
MODULES = ["conv1", "block.1", "block.2", "head"]
EVIL = "<script>alert(1)</script>\"'&$x^2$"


def run_report(**fields: Any) -> dict[str, Any]:
    losses = [0.02, 0.05, 0.03, 0.06]
    given: dict[str, Any] = {
        "name": "net W2A4 qdrop",
        "checkpoint": "net.safetensors",
        "recipe": {"w_bits": 2, "a_bits": 4, "method": "qdrop", "k": 1},
        "request": {"arch": "modcap.zoo:vgg_tiny", "data": "a folder", "eval_images": 100},
        "bits": "W2A4",
        "method": "qdrop",
        "modules": MODULES,
        "groups": [["conv1"], ["block.1", "block.2"], ["head"]],
        "k": 1,
        "k_asked": "1",
        "fp_top1": 92.5,
        "top1": 90.25,
        "agreement": 93.75,
        "images": 400,
        "oscillation": 0.61,
        "losses": losses,
        "final_error": 0.06,
        "artifact_bytes": 1000,
        "fp_bytes": 10_000,
        "artifact_digest": digest(ARTIFACT),
        "capacities": [10.0, 500.0, 100.0, 7.0],
        "differentials": [240_100.0, 160_000.0, 8649.0],
        "homogeneous": [False, True, True],
        "selected": [False, True, False],
        "classes": ["bag", "coat"],
        "per_class": {"images": [200, 200], "fp_hits": [190, 180], "hits": [188, 173]},
        "comparison": [
            {"variant": "full precision", "top1": 92.5},
            {"variant": "rtn", "top1": 20.0, "drop": 72.5, "losses": [0.1, 0.4, 0.2, 0.6]},
            {"variant": "qdrop k=0", "top1": 89.0, "drop": 3.5, "losses": [0.02, 0.07, 0.03, 0.08]},
            {"variant": "qdrop top-k k=1", "top1": 90.25, "drop": 2.25, "losses": losses},
        ],
        "job_times": [
            {"label": "capacity conv1", "kind": "capacity", "seconds": 0.5},
            {"label": "qdrop W2A4 conv1", "kind": "reconstruct", "seconds": 12.0},
        ],
        "source": {"checkpoint": "net.safetensors", "preprocess": "mean=0.5,std=0.5"},
    }
    return given | fields


def sweep_report(**fields: Any) -> dict[str, Any]:
    cells = [
        run_report(
            **{"name": f"net {bits} k={k}", "model_name": "net", "state": "finished"},
            **{"bits": bits, "k_asked": k, "top1": top1, "drop": 92.5 - top1},
        )
        for bits, k, top1 in (("W2A4", "0", 88.0), ("W2A4", "1", 90.25), ("W4A4", "0", 92.0))
    ]
    failed = {"name": "net W8A8", "model_name": "net", "state": "failed", "reason": "out of memory"}
    cells.append(failed | {"bits": "W8A8", "k_asked": "0", "recipe": {}})
    jobs = {"planned": 9, "executed": 7, "reused": 2}
    return {"cells": cells, "best": {"net": "net W4A4 k=0"}, "jobs": jobs} | fields


def page(values: dict[str, Any], artifact: bytes | None = ARTIFACT) -> str:
    return page_of(report_of(values, "this"), artifact)


class _Tags(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "use", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def tags(text: str) -> _Tags:
    parser = _Tags()
    parser.feed(text)
    parser.close()
    assert not parser.open
    return parser


def test_a_page_of_a_run_says_the_verdict_first_and_every_figure_as_text() -> None:
    found = tags(page(run_report()))
    text = " ".join(found.text.split())
    assert "92.50 % → 90.25 % −2.25 points, on 400 test images" in text
    assert text.index("90.25 %") < text.index("Module by module") < text.index("Make it again")
    assert "93.75 %" in text
    assert "10.0 times smaller" in text
    for figure in ("240,100", "block.1 + block.2", "86.50", "−3.50", "12.0 s", "0.07"):
        assert figure in text, figure
    labels = {attributes["aria-label"] for tag, attributes in found.found if tag == "svg"}
    assert labels == {
        "Loss over depth",
        "Capacity of each module",
        "Squared difference of capacity at each boundary",
        "Use of the levels of weights",
    }
    for variant in ("rtn", "qdrop k=0", "qdrop top-k k=1"):
        assert found.text.count(variant) >= 3, variant  # of a picture, and of two tables


@pytest.mark.parametrize("values", [run_report(), sweep_report()], ids=["run", "sweep"])
def test_a_page_needs_no_network_and_is_the_same_each_time(values: dict[str, Any]) -> None:
    made = page(values)
    assert made == page(values)
    assert len(made.encode()) < 100_000
    for tag, attributes in tags(made).found:
        assert tag not in ("script", "link", "img", "iframe", "object", "image")
        for name in ("src", "href", "xlink:href", "style"):
            assert not re.search(r"//|url\((?!#)", attributes.get(name) or ""), (tag, attributes)
    assert "default-src 'none'" in made
    assert "@import" not in made


@pytest.mark.parametrize("values", [run_report(), sweep_report()], ids=["run", "sweep"])
def test_names_from_outside_are_text_wherever_they_stand(values: dict[str, Any]) -> None:
    made = page(_with_evil(values))
    found = tags(made)
    assert EVIL in found.text
    assert not {tag for tag, _ in found.found} & {"script", "evil"}
    assert "<script" not in made.lower()
    assert not [name for _, attributes in found.found for name in attributes if name[:2] == "on"]


def _with_evil(values: Any, key: str = "") -> Any:
    """Every text that is no choice of the format becomes hostile."""
    if isinstance(values, dict):
        return {k: _with_evil(v, k) for k, v in values.items()}
    if isinstance(values, list):
        return [_with_evil(value, key) for value in values]
    if isinstance(values, str) and key not in ("state", "artifact_digest"):
        return f"{values}{EVIL}"
    return values


def test_long_names_do_not_hide_a_script_in_a_picture() -> None:
    for size in range(0, 30, 4):  # a name of each size
        names = [f"{'m' * longer}{EVIL}{longer}" for longer in range(size, size + 4)]
        made = page(run_report(modules=names, groups=[[name] for name in names]))
        assert "<script" not in made.lower()


def test_layers_are_those_of_the_artifact() -> None:
    network = unpack_network(ARTIFACT)
    layers = layers_in(ARTIFACT, {})
    own = [layer for module in network.chain for layer in quantizers(module)[0].values()]
    assert len(layers) == len(own)
    x = torch.zeros(1, *network.input_shape)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(x)
    assert 2 * sum(layer.macs for layer in layers) == counter.get_total_flops()
    for layer, quantized in zip(layers, own, strict=True):
        assert sum(layer.histogram) == layer.weights == quantized.weight.numel()
        assert layer.w_bits == quantized.bits
        assert layer.low == quantized.weight.min()
    assert sum(layer.bytes for layer in layers) < len(ARTIFACT)


def test_what_a_report_lacks_is_left_out_and_said() -> None:
    least = {
        name: value
        for name, value in run_report().items()
        if name
        not in ("capacities", "per_class", "comparison", "job_times", "agreement", "request")
    }
    text = tags(page(least, None)).text
    assert "Left out: the artifact was not at hand." in text
    assert "Left out: this report counts no classes." in text
    assert "Capacity of each module" not in text


def test_a_sweep_shows_its_best_all_cells_and_what_failed() -> None:
    found = tags(page(sweep_report()))
    text = " ".join(found.text.split())
    assert "Best of net: net W4A4 k=0" in text
    assert "out of memory" in text
    assert text.index("net W4A4 k=0 92.00") < text.index("net W2A4 k=1 90.25")
    labels = {attributes["aria-label"] for tag, attributes in found.found if tag == "svg"}
    assert "Top-1 of net over bits and k" in labels
    nothing = tags(page(sweep_report(cells=[sweep_report()["cells"][-1]], best={}))).text
    assert "No cell was chosen" in nothing


def test_bits_that_were_chosen_are_said_and_predictions_drawn() -> None:
    said = {"average_bits": 2.96875, "predicted_bytes": 900, "predicted_error": 0.1}
    widths = [{"layer": "conv1", "w": 8, "a": 8}, {"layer": "head", "w": 3, "a": 0}]
    chosen = {"allocation": said | {"predicted_drop": 4.5}, "layer_bits": widths}
    auto = {"recipe": {"w_bits": "auto", "budget": 3.0}}
    text = " ".join(tags(page(run_report(**chosen, **auto))).text.split())
    assert "bits of layers chosen: 2.969 on average, with 4.50 % of answers predicted" in text
    assert "onnxruntime 1.20 or later, which knows 4-bit weights" in text
    without = page(run_report(allocation=said | {"predicted_drop": None}))
    assert "bits of layers chosen: 2.969 on average<" in without
    cells = sweep_report()["cells"]
    assert "what was predicted stands beside" not in page(sweep_report())
    both = sweep_report(cells=[cells[0] | chosen, *cells[1:]])
    assert "what was predicted stands beside" in page(both)
    (cell, *_) = report_of(both, "this").cells  # type: ignore[union-attr]
    assert cell.predicted == (900, 88.0)


def test_warnings_stand_above_everything() -> None:
    text = tags(page(run_report(warnings=["full precision guesses"]))).text
    assert text.index("full precision guesses") < text.index("Top-1")


def test_the_command_can_be_pasted() -> None:
    request = {"arch": "a:b", "data": "my images", "eval_images": 5, "name": "$(rm x)"}
    made = command_of("a b.pt", {"w_bits": 2}, request, {"preprocess": "mean=0.5,std=0.5"})
    assert made.startswith("cat > recipe.json <<'END'\n")
    assert json.loads(made.partition("\n")[2].partition("\nEND\n")[0]) == {"w_bits": 2}
    assert "modcap quantize 'a b.pt'" in made
    assert "--name '$(rm x)'" in made
    assert "--data 'my images'" in made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no report of a run or a sweep"),
        ('{"losses": []}', "checkpoint"),
        ("{", "cannot be read"),
        (json.dumps(run_report(top1=1e9)), "top1"),
        (json.dumps(run_report(modules=[])), "modules"),
        (json.dumps(run_report(modules=["m"] * 9999)), "modules"),
    ],
)
def test_a_file_that_is_no_report_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    done = CliRunner().invoke(app, ["report", str(file), "--output", str(tmp_path / "out.html")])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out.html").exists()


def test_the_command_writes_a_page_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(run_report()))
    (tmp_path / "network.safetensors").write_bytes(ARTIFACT)
    out = tmp_path / "page.html"
    for source, layers in ((tmp_path / "report.json", False), (tmp_path, True)):
        done = CliRunner().invoke(app, ["report", str(source), "--output", str(out), "--json"])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["layers"] is layers
        assert said["bytes"] == out.stat().st_size
        assert ("Use of the levels" in out.read_text()) is layers
    (tmp_path / "network.safetensors").write_bytes(ARTIFACT[:-1] + b"x")  # of another run
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--output", str(out), "--json"])
    assert json.loads(done.stdout)["layers"] is False


def test_reports_of_both_kinds_are_told_apart() -> None:
    assert isinstance(report_of(run_report(), "x"), RunReport)
    assert isinstance(report_of(sweep_report(), "x"), SweepReport)
