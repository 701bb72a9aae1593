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
    "recipe": {"bits": {}, "float": []},
    "layer_bits": [],
    "allocation": None,
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
    "measured": "10,000 images of fashion-mnist",
    "warnings": [],
    "environments": [{"torch": "2.8.0", "device": "cpu", "processor": "x86", "jobs": 84}],
    "mlflow_run_url": "http://127.0.0.1:5000/#/experiments/1/runs/2",
    "artifact": "s3://modcap/artifacts/0123.safetensors",
    "exports": [
        {
            "format": "onnx",
            "bytes": 412_345,
            "file": "models:/mobilenet_v2_x0_5/3/onnx/network.onnx",
        }
    ],
}
CELL: dict[str, Any] = {
    "state": "finished",
    "name": "net W4A4 qdrop k=auto seed=0",
    "label": "net",
    "model_name": "net-w4a4",
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
            "label": "net",
            "model_name": "net-w2a4",
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
    "bits": [],
    "assumed": ["no images given: planned for 3 × 224 × 224, without evaluation"],
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
            "warnings": ["version 1 stays candidate: version 2 is less accurate"],
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
QUANTIZE_TABLE = """
mobilenet_v2_x0_5 version 3: W2A4
variant         top-1 %  drop final error groups     bytes
──────────────────────────────────────────────────────────
full precision    92.79                          2,764,328
rtn               18.88 73.91        1.23     20   291,040
qdrop top-k k=4   90.82  1.97      0.0432     16   291,040
final error: relative error of the logits, on calibration images
jobs: 84 planned, 84 executed, 0 reused
104.2 s; 10,000 images of fashion-mnist
MLflow run: http://127.0.0.1:5000/#/experiments/1/runs/2
artifact:   s3://modcap/artifacts/0123.safetensors
onnx:       models:/mobilenet_v2_x0_5/3/onnx/network.onnx, 412,345 bytes
"""
SWEEP_TABLE = """
model bits method      k seed top-1 % drop  error   bytes note
──────────────────────────────────────────────────────────────────
net   W4A4 qdrop  auto 2    0   91.50 0.50 0.0123 400,000 best: v1
net   W2A4 qdrop       0    1                             failed
failed: net W2A4: diverged
error: relative error of the logits, on calibration images
jobs: 60 planned, 50 executed, 10 reused; 200.0 s
40 distinct reconstructions of 50 that independent runs would make
registered: net-w4a4 version 1
MLflow run: http://127.0.0.1:5000/#/experiments/1/runs/2
"""
PLAN_TABLE = """
jobs        planned done
────────────────────────
capacity         20   20
reconstruct      16    3
some selections are not made yet: what follows from them is not counted
no images given: planned for 3 × 224 × 224, without evaluation
16 distinct reconstructions of 16 that independent runs would make
work 120 s, critical path 60 s over 2 jobs
with 64 workers: 61 s (efficiency 3%, 2.50 in all)
costs of 23 jobs measured, of 13 estimated by a probe
"""
SCAN_TABLE = """
WARNING: cats/net.pt2: version 1 stays candidate: version 2 is less accurate
below s3://bucket/incoming/
checkpoint   state      versions or reason                               top-1 %
────────────────────────────────────────────────────────────────────────────────
cats/net.pt2 registered net-w4a4/1                                         91.50
                        net-w2a4/1                                         88.25
bad.pt       bad        checkpoint bad.pt is empty: copy or download it
                        again
48 jobs executed, 75.0 s
"""
CAPACITY_TABLE = """
k = 1
module    capacity differential to the next boundary
───────────────────────────────────────────────────────────
conv1         1234                1.494e+10 not homogeneous
layer1.0 1.235e+05                  6.1e+08 joined
fc       9.877e+04
"""
TABLES = {
    "quantize": (show_quantized, COMPARED, QUANTIZE_TABLE),
    "sweep": (show_sweep, SWEPT, SWEEP_TABLE),
    "plan": (show_plan, PLANNED, PLAN_TABLE),
    "scan": (show_checkpoints, SCANNED, SCAN_TABLE),
    "capacity": (show_capacities, MEASURED, CAPACITY_TABLE),
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
