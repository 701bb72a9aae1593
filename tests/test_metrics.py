"""Metrics by name, of one's own and by default, from the request to the gate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from torch import Tensor
from torch.nn.functional import one_hot

from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import parse
from modcap.data.image_set import ImageSet
from modcap.export.artifact import QuantizedNetwork, unpack_network
from modcap.flows.cli.measure import show_accuracy
from modcap.flows.cli.quantize import show as show_quantized
from modcap.flows.promote import _compared
from modcap.flows.registry.accuracy import evaluate_artifact
from modcap.flows.registry.candidate import _why_not
from modcap.flows.registry.figures import Figures
from modcap.flows.registry.gate_figures import Measured, gate_metric
from modcap.flows.registry.publish import _metrics
from modcap.flows.registry.version_tags import scale_of, tags_of
from modcap.flows.requests.description import Description, describe, ready
from modcap.flows.requests.gate import Gate
from modcap.flows.requests.request import prepare
from modcap.flows.requests.request_images import BadImages
from modcap.flows.requests.scan_policy import Manifest, Rule
from modcap.flows.sweep import _best
from modcap.jobs.job import Cell
from modcap.jobs.kinds.evaluate import evaluate_full_job
from modcap.ptq.measured import Scale
from modcap.ptq.metric_name import MetricName
from modcap.ptq.user_metric import UserMetric, with_code
from modcap.recipe import Recipe
from tests.golden import small_network
from tests.in_process import finished_of
from tests.rooms import ROOT
from tests.test_classes import request

OWN = "tests.test_metrics:disagreement"


def disagreement(network: Any, full: Any, batches: Any) -> float:
    """Percent of images that are taken for another class than in full precision, and its labels."""
    other = of = 0
    for images, labels in batches:
        assert labels is None or len(labels) == len(images)
        other += int((network(images).argmax(1) != full(images).argmax(1)).sum())
        of += len(images)
    return 100 * other / of


disagreement.title = "changed %"  # type: ignore[attr-defined]
disagreement.higher_is_better = False  # type: ignore[attr-defined]


def broken(network: Any, full: Any, batches: Any) -> float:
    raise KeyError("no such thing")


def endless(network: Any, full: Any, batches: Any) -> float:
    return float("inf")


def npz(folder: Path, labels: bool = False, count: int = 40) -> str:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    named = {"labels": generator.integers(0, 3, count)} if labels else {}
    np.savez(folder / "images.npz", images=pixels, **named)
    return str(folder / "images.npz")


def test_without_labels_agreement_stands_for_top1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = request(tmp_path, data=npz(tmp_path))
    done = finished_of(prepare(asked))
    said = json.loads(json.dumps(done.report))
    assert (said["metric"], said["metric_title"], said["fp_value"]) == (
        *("agreement", "agreement %"),
        100.0,
    )
    assert said["agreement"] == said["value"] == 100 - said["drop"]
    assert not {"top1", "fp_top1"} & said.keys()
    logged = {metric.key: metric.value for metric in _metrics(done)}
    assert logged["agreement"] == done.value
    assert "top1" not in logged
    tags = tags_of(done)
    assert (tags["metric"], tags["fp_agreement"]) == ("agreement", "100.0000")
    file = tmp_path / "a.safetensors"
    file.write_bytes(done.artifact)
    data = npz(tmp_path)
    checkpoint = asked.checkpoint, asked.arch
    report = evaluate_artifact(str(file), data, None, None, None, *checkpoint)
    assert report["agreement"] == report["value"] > 90
    show_accuracy(report)
    assert "agreement " in capsys.readouterr().out
    row = {"variant": "full precision", "value": 100.0}
    show_quantized(
        {
            **said,
            "model_name": "net",
            "model_version": 1,
            "comparison": [row],
            "jobs": {"planned": 1, "executed": 1, "reused": 0},
            "seconds": 1.0,
            "mlflow_run_url": "",
            "artifact": "",
        }
    )
    assert "agreement %" in capsys.readouterr().out


def test_labels_that_are_asked_for_and_missing_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match="the images have no labels: give labels") as caught:
        prepare(request(tmp_path, data=npz(tmp_path), metric="top1"))
    assert "\n" not in str(caught.value)


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    prepared = prepare(request(tmp_path, data=npz(tmp_path, labels=True), metric=OWN))
    assert prepared.cell.metric.code
    (again,) = ready(Description.model_validate_json(describe([prepared]).model_dump_json()))
    assert again.cell.metric == prepared.cell.metric
    done = finished_of(prepared)
    assert done.scale == Scale(OWN, "changed %", False)
    assert done.full == 0.0
    assert done.value == 100 - finished_of(prepare(request(tmp_path, data=npz(tmp_path)))).value
    tags = tags_of(done)
    assert (tags["metric"], tags["metric_better"]) == (OWN, "lower")
    assert "disagreement" in tags
    assert not scale_of(tags).higher_is_better


def test_its_name_and_its_code_are_in_the_keys() -> None:
    network, x = small_network()
    images = ImageSet(x, None, (0.0,), (1.0,))

    def key(**fields: str) -> str:
        name = MetricName(**fields)
        recipe = Recipe(method="rtn", k=0, calibration=32)
        cell = Cell(network, images.digest, images.digest, recipe, metric=name)
        return evaluate_full_job(cell).key

    code = "a" * 64
    named = ({}, {"name": "error"}, {"name": OWN}, {"name": OWN, "code": code})
    assert len({key(**fields) for fields in named}) == 4
    assert with_code(MetricName(name=OWN)).code != code
    with pytest.raises(Unavailable, match="the worker's code is not that of the command"):
        UserMetric(MetricName(name=OWN, code=code))


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken", "fails.*no such thing"), ("endless", "gives inf"), ("Tensor", "fails")],
)
def test_a_metric_that_fails_is_one_line(name: str, said: str) -> None:
    network, x = small_network()
    images = ImageSet(x, None, (0.0,), (1.0,))
    metric = UserMetric(MetricName(name=f"tests.test_metrics:{name}"))
    with pytest.raises(InputError, match=said) as caught:
        metric.measure(network, network, images, "cpu", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["accuracy", "os", "os.path:", ":x", "a b:c", "os:sys:x", "../a:b"]
)
def test_no_metric_is_called_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no metric"):
        parse(MetricName, {"name": name})
    with pytest.raises(ValueError, match="is no metric"):
        request(tmp_path, data="x", metric=name)


def test_only_the_policy_names_a_metric() -> None:
    with pytest.raises(InputError, match="metric"):
        parse(Manifest, {"metric": OWN})
    rule = {"recipes": [{}]}
    assert parse(Rule, rule | {"metric": OWN}).metric == OWN
    assert "metric" not in parse(Rule, rule).identity  # what was noted before stays known


def version(number: int, **tags: str) -> ModelVersion:
    return ModelVersion("net", str(number), 0, tags=[ModelVersionTag(*t) for t in tags.items()])


def test_the_candidate_is_the_better_one_by_any_metric() -> None:
    base = {"artifact_bytes": "1", "evaluation_digest": "a", "metric": "error"}
    worse, better = version(2, **base, error="0.2"), version(2, **base, error="0.05")
    old = version(1, **base, error="0.1")
    assert "relative error 0.2 against 0.1" in _why_not(worse, old)
    assert _why_not(better, old) == ""
    agreement = {**base, "metric": "agreement", "agreement": "3.0"}
    assert _why_not(version(2, **agreement), old) == ""  # nothing to compare


def test_the_best_cell_by_an_error_is_the_least() -> None:
    scale = Scale("error", "relative error", False).fields
    base = {"label": "net", "state": "finished", "artifact_bytes": 1, **scale}
    rows = [base | {"value": value, "drop": value} for value in (0.3, 0.1, 0.2)]
    grid = cast(Any, SimpleNamespace(max_drop=None, max_bytes=None))
    best = _best(grid, cast(Any, rows), "net")
    assert best is not None
    assert best["value"] == 0.1


def measured(value: float, full: float, scale: Scale, number: int = 2) -> Measured:
    return Measured(version(number), Figures(scale, value, full), 40, "40 images", 10, None)


def test_the_gate_compares_what_was_measured() -> None:
    agreement = Scale("agreement", "agreement %")
    gate = parse(Gate, {"name": "net", "data": "x", "max_drop": 2.0, "against": "champion"})
    own, rival = measured(97.0, 100.0, agreement), measured(98.0, 100.0, agreement, 1)
    drop, against = _compared(gate, own, rival)
    assert not drop.met
    assert not against.met
    assert drop.why == "it loses 3.00 points of agreement (100.00 to 97.00 %), and 2 are allowed"
    assert "98.00 against 97.00 %" in against.why
    error = Scale("error", "relative error", False)
    drop, against = _compared(gate, measured(0.1, 0.0, error), measured(0.2, 0.0, error, 1))
    assert drop.met
    assert (against.met, against.sign) == (True, "≤")
    with pytest.raises(InputError, match="give --metric one that fits both"):
        list(_compared(gate, own, measured(0.2, 0.0, error, 1)))


def test_a_gate_that_wants_top1_wants_labels(tmp_path: Path) -> None:
    done = finished_of(prepare(request(tmp_path, data=npz(tmp_path))))
    network = unpack_network(done.artifact)
    assert isinstance(network, QuantizedNetwork)
    bare = ImageSet(torch.zeros(4, 1, 8, 8), None, (0.0,), (1.0,))
    gate: dict[str, Any] = {"name": "net", "data": "x.npz"}
    with pytest.raises(InputError, match=r"--min-top1 cannot be measured on x\.npz.*no labels"):
        gate_metric(parse(Gate, gate | {"min_top1": 90}), network, bare)
    assert gate_metric(parse(Gate, gate | {"max_drop": 1}), network, bare).name == "agreement"
    own = gate_metric(parse(Gate, gate | {"max_drop": 1, "metric": OWN}), network, bare)
    assert own.name == OWN
    with pytest.raises(InputError, match="--min-top1 asks for top-1"):
        parse(Gate, gate | {"min_top1": 90, "metric": "agreement"})


def test_images_of_another_size_are_one_line(tmp_path: Path) -> None:
    other = np.zeros((20, 1, 9, 8), np.uint8)
    np.savez(tmp_path / "other.npz", images=other)
    asked = request(tmp_path, data=npz(tmp_path), eval_data=str(tmp_path / "other.npz"))
    with pytest.raises(InputError, match=r"images are 1 × 9 × 8.* captured for 1 × 8 × 8"):
        prepare(asked)


def test_a_tensor_is_what_a_user_of_one_output_sees() -> None:
    network, x = small_network()
    seen: list[type] = []
    metric = UserMetric(MetricName(name=OWN))
    metric._function = lambda network, full, batches: seen.append(type(network(x[:1]))) or 1.0
    assert metric.measure(network, network, ImageSet(x, None, (0.0,), (1.0,)), "cpu", 7) == 1.0
    assert seen == [Tensor]


def test_the_example_of_the_page_of_metrics() -> None:
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"torch": torch}
    exec(compile(code, "docs/metrics.md", "exec", dont_inherit=True), names)
    maps = torch.randint(0, 21, (4, 5, 6), generator=torch.Generator().manual_seed(0))
    other = maps.clone()
    other[:, 0] = 20 - other[:, 0]
    logits = {name: one_hot(each, 21).movedim(-1, 1) for name, each in ((1, maps), (2, other))}
    images = torch.zeros(4, 3, 5, 6)

    def measure(which: int) -> float:
        rows = logits[which]
        found: float = names["mean_iou"](lambda x: rows, None, iter([(images, maps)]))
        return found

    assert measure(1) == 100.0
    assert 30 < measure(2) < 95
