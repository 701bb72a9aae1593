"""What commands print, as a whole, at 80 columns."""

from __future__ import annotations

from typing import Any

import pytest

from modcap.flows.cli.measure import show_capacities
from modcap.flows.cli.plan import show as show_plan
from modcap.flows.cli.quantize import show as show_quantized
from modcap.flows.cli.registry import show_checkpoints
from modcap.flows.cli.sweep import show as show_sweep

COMPARED: dict[str, Any] = {
    "model_name": "mobilenet_v2_x0_5",
    "model_version": 3,
    "bits": "W2A4",
    "fp_bytes": 2_764_328,
    "comparison": [
        {"variant": "full precision", "top1": 92.79},
        {
            "variant": "rtn",
            "top1": 18.88,
            "drop": 73.91,
            "oscillation": 0.71,
            "final_error": 1.2345,
            "artifact_bytes": 291_040,
            "groups": 20,
        },
        {
            "variant": "qdrop top-k k=4",
            "top1": 90.82,
            "drop": 1.97,
            "oscillation": 0.4,
            "final_error": 0.04321,
            "artifact_bytes": 291_040,
            "groups": 16,
        },
    ],
    "jobs": {"planned": 84, "executed": 84, "reused": 0},
    "seconds": 104.25,
    "images": 10_000,
    "mlflow_run_url": "http://127.0.0.1:5000/#/experiments/1/runs/2",
    "artifact": "s3://modcap/artifacts/0123.safetensors",
    "exports": ["onnx"],
}
CELL: dict[str, Any] = {
    "state": "finished",
    "name": "net W4A4 qdrop k=auto seed=0",
    "model_name": "net",
    "bits": "W4A4",
    "recipe": {"method": "qdrop", "seed": 0},
    "k_asked": "auto",
    "k": 2,
    "top1": 91.5,
    "drop": 0.5,
    "final_error": 0.0123,
    "artifact_bytes": 400_000,
    "model_version": 1,
}
SWEPT: dict[str, Any] = {
    "best": {"net": CELL["name"]},
    "cells": [
        CELL,
        {
            "state": "failed",
            "name": "net W2A4",
            "model_name": "net",
            "bits": "W2A4",
            "recipe": {"method": {"name": "qdrop", "quantize_probability": 0.3}, "seed": 1},
            "k_asked": "0",
            "reason": "diverged",
        },
    ],
    "jobs": {"planned": 60, "executed": 50, "reused": 10},
    "reconstructions": {"distinct": 40, "independent": 50, "ratio": 0.8},
    "seconds": 200.0,
    "mlflow_run_url": "http://127.0.0.1:5000/#/experiments/1/runs/2",
}
PLANNED: dict[str, Any] = {
    "jobs": {"capacity": {"planned": 20, "done": 20}, "reconstruct": {"planned": 16, "done": 3}},
    "open": True,
    "assumed": ["no images given: planned for 3 × 224 × 224; the time of evaluation is not counted"],
    "reconstructions": {"distinct": 16, "independent": 16},
    "work_seconds": 120.4,
    "critical_path": {"seconds": 60.2, "jobs": ["a", "b"]},
    "workers": 64,
    "seconds": 61.0,
    "efficiency": 0.031,
    "cost": 2.5,
    "costs": {"measured": 23, "probed": 13},
}
SCANNED: dict[str, Any] = {
    "prefix": "s3://bucket/incoming",
    "busy": False,
    "checkpoints": [
        {
            "checkpoint": "s3://bucket/incoming/cats/net.pt2",
            "state": "registered",
            "reason": "",
            "versions": ["net-w4a4/1", "net-w2a4/1"],
            "top1": [91.5, 88.25],
        },
        {
            "checkpoint": "s3://bucket/incoming/bad.pt",
            "state": "bad",
            "reason": "checkpoint bad.pt is empty: copy or download it again",
            "versions": [],
            "top1": [],
        },
    ],
    "executed": 48,
    "seconds": 75.0,
}
MEASURED: dict[str, Any] = {
    "k": 1,
    "modules": ["conv1", "layer1.0", "fc"],
    "capacities": [1234.0, 123456.0, 98765.4],
    "differentials": [1.4938e10, 6.1e8],
    "homogeneous": [False, True],
    "selected": [False, True],
}
TABLES = {
    "quantize": (show_quantized, COMPARED, "EXPECTED"),
    "sweep": (show_sweep, SWEPT, ""),
    "plan": (show_plan, PLANNED, ""),
    "scan": (show_checkpoints, SCANNED, ""),
    "capacity": (show_capacities, MEASURED, ""),
}


@pytest.mark.parametrize("name", TABLES)
def test_table(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show, report, expected = TABLES[name]
    show(report)
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed == expected.strip("\n")
    assert max(map(len, printed.splitlines())) <= 80
