"""Where Prefect points to: the page of a run, in MLflow."""

from __future__ import annotations

from prefect.artifacts import create_link_artifact

__all__ = ["PAGE", "link_report"]

PAGE = "report.html"
"""Its name among the artifacts of a run."""


def link_report(run_url: str, name: str) -> None:
    """Shows a link to the page of the MLflow run ``run_url`` beside the flow run."""
    link = f"{run_url}/artifacts/{PAGE}"
    create_link_artifact(link=link, link_text=f"report: {name}", key="report", description=name)
