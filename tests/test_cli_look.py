"""``modcap capacity`` without images, and what ``--strict`` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modcap.flows import cli

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.mixing = nn.Parameter(torch.eye(4) + 0.1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)) @ self.mixing)
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["capacity", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def mixing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "mixing_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    tensors = {"conv.weight": torch.randn(4, 1, 3, 3), "conv.bias": torch.zeros(4)}
    tensors |= {"mixing": torch.eye(4), "head.weight": torch.randn(3, 4)}
    save_file(tensors | {"head.bias": torch.zeros(3)}, tmp_path / "net.safetensors")
    return [str(tmp_path / "net.safetensors"), "--arch", "mixing_net:Net"]


@pytest.mark.filterwarnings("always::modcap.core.errors.Notice")
def test_strict_refuses_what_would_stay_in_floating_point(
    mixing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *mixing, "--json")
    assert code == 0
    assert json.loads(out)["modules"]
    assert "'mixing' is multiplied" in err
    assert "stays in floating point" in err
    code, out, err = run(capsys, *mixing, "--strict")
    assert (code, out) == (2, "")
    assert "'mixing' is multiplied" in err
    assert err.count("\n") == 1


def test_an_archive_says_its_shape_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 5, 3))
    images = torch.zeros(2, 2, 5, 7)
    program = torch.export.export(
        net.eval(), (images,), dynamic_shapes={"input": {0: torch.export.Dim("batch")}}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    code, out, err = run(capsys, tmp_path / "net.pt2", "--json")
    assert code == 0, err
    assert len(json.loads(out)["modules"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--capacity", "none"], "--capacity none measures nothing"),
        (["--capacity", "data-dependent"], "measures on images: give --data"),
        (["--method", "rtn"], "--method rtn joins nothing"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    mixing: list[str], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *mixing, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
