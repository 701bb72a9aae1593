"""Pictures are drawn whatever a plan holds."""

from __future__ import annotations

from modcap.flows.reports import charts, plots
from modcap.jobs.kinds import KINDS


def test_every_kind_of_job_is_drawn_in_its_own_way() -> None:
    kinds = list(KINDS)
    count = len(kinds)
    figure = plots.plan_graph(list(range(count)), [0] * count, kinds, [False] * count, [])
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert len(labels) == count
    assert plots.png(figure).startswith(b"\x89PNG")


def test_a_heat_map_has_auto_behind_all_numbers() -> None:
    values = {("W2A4", k): [90.0, 91.0] for k in ("10", "auto", "9", "0")}
    axes = plots.heat_map(values).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "9", "10", "auto"]
    assert {text.get_text() for text in axes.texts} == {"90.50"}


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    points = [(4000, 90.0, "W4A4"), (3000, 91.0, "Wauto3A4"), (2500, 85.0, "Wauto2.5A4")]
    for predicted, labels in (
        ((), {"front"}),
        ([(2500, 80.0), (3000, 88.0)], {"front", "predicted"}),
    ):
        axes = plots.pareto(points, predicted=predicted).axes[0]
        found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert set(found) == labels
        assert found.get("predicted", []) == [[2.5, 80.0], [3.0, 88.0]][: len(predicted)]
        assert ("predicted" in charts.sizes(points, predicted=predicted)) is bool(predicted)
