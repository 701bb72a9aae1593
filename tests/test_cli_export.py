"""``modcap export`` and ``modcap evaluate`` on what it writes, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modcap.core.errors import InputError
from modcap.core.messages import parse
from modcap.flows import cli
from modcap.flows.requests.asked import Request
from modcap.flows.requests.scan_policy import Rule
from tests.exports import artifact_of
from tests.test_export import SHAPE, network


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    (made / "n.safetensors").write_bytes(artifact_of(network(), torch.randn(8, *SHAPE), 2, 8))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    np.savez(made / "images.npz", images=images, labels=generator.integers(0, 5, 40))
    return made


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_exports_are_evaluated_like_the_artifact(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "--data", folder / "images.npz", "--preprocess", "mean=0.5/0.5/0.5,std=0.25/0.25/0.25"
    expected = report(capsys, "evaluate", folder / "n.safetensors", *data)
    for name in ("onnx", "pt2"):
        file = folder / f"n.{name}"
        said = report(capsys, "export", folder / "n.safetensors", "--format", name, "--out", file)
        assert said["bytes"] == file.stat().st_size
        assert said["agreement"] == 100
        found = report(capsys, "evaluate", file, *data)
        assert found["top1"] == expected["top1"]
        assert found["images"] == expected["images"]
        assert found["bytes"] == file.stat().st_size
        assert found["latency_ms"] > 0


def test_a_smaller_opset_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = "--opset", "21", "--out", folder / "wide.onnx"
    code, said, _ = run(capsys, "export", folder / "n.safetensors", *out)
    assert code == 0
    assert "opset 21 has uint4 and uint8 only: weights of 2 bits take more room" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "images.npz", "--out", "x"], "not a modcap artifact"),
        (["export", "none.safetensors", "--out", "x"], "cannot be read"),
        (["export", "n.safetensors", "--out", "x", "--format", "tflite"], "'tflite' is not known"),
        (["export", "n.safetensors", "--out", "x", "--opset", "20"], "--opset 20: give 25"),
        (["export", "n.safetensors", "--out", "no/x"], "make it first"),
        (["evaluate", "bad.onnx", "--data", "images.npz"], "it is damaged, or needs a later"),
        (["evaluate", "bad.pt2", "--data", "images.npz"], "cannot be read as a .pt2"),
        (["evaluate", "none.onnx", "--data", "images.npz"], "cannot be read"),
    ],
)
def test_damaged_and_foreign_files_are_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    for name in ("bad.onnx", "bad.pt2"):
        Path(name).write_bytes(b"\x08\x07damaged")
    code, out, err = run(
        capsys, *command, *(["--preprocess", "mean=0,std=1"] * ("evaluate" in command))
    )
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not Path("x").exists()


def test_formats_of_requests_and_rules() -> None:
    request = Request(checkpoint="a.pt2", data="d", onnx=True, exports=("pt2", "onnx"))
    assert request.formats == ("onnx", "pt2")
    with pytest.raises(InputError, match="exports: 'tflite' is no format: give onnx, pt2"):
        parse(Rule, {"exports": ["tflite"], "recipes": [{}]})
    with pytest.raises(InputError, match="exports: 'tflite' is no format: give onnx, pt2"):
        parse(Request, {"checkpoint": "a.pt2", "data": "d", "exports": ["tflite"]})
