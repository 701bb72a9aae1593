"""Pictures are drawn whatever a plan holds."""

from __future__ import annotations

from flows import plots
from modcap.jobs import Kind


def test_every_kind_of_job_is_drawn_in_its_own_way() -> None:
    kinds = [kind.value for kind in Kind]
    count = len(kinds)
    figure = plots.plan_graph(list(range(count)), [0] * count, kinds, [False] * count, [])
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert len(labels) == count
    assert plots.png(figure).startswith(b"\x89PNG")
