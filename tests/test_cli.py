"""The command line: its flags, and bad input that ends with exit 2 and one clear line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from modcap.core.errors import InputError, Unavailable
from modcap.flows import cli
from modcap.flows.cli.options import grid_options, make_recipe

SHIPPED = Path(__file__).parent.parent / "examples/fashion_mnist/checkpoints"
GOOD = SHIPPED / "resnet18_narrow.safetensors"
ARCH = ["--arch", "modcap.zoo:resnet18_narrow"]
DATA = ["--data", "fashion-mnist"]
RECIPE = (
    "activation-memory activations allocation batch-size bias-rate bits calibration capacity "
    "capacity-images "
    "capacity-scale correction device first-last-bits float gpus groups homogeneity iterations "
    "iterations-per k-search "
    "path-share positions precision preset recipe relative-scale-rate rounding scale-exponent "
    "rounding-start scale-rate scales schedule selection sensitivity-images shared-prefix "
    "stride-coefficient threads tuning tuning-rate tuning-rounding-rate weight-scale-rate weights"
)
AXES = "a-bits budget k method w-bits"
IMAGES = "arch classes data preprocess strict"
REQUEST = f"{IMAGES} eval-data eval-images export force metric name onnx"
BOUNDS = "max-bytes max-drop"
FLAGS = {
    "quantize": f"{RECIPE} {AXES} {BOUNDS} {REQUEST} seed compare no-compare json",
    "capacity": f"{RECIPE} {AXES} {BOUNDS} {IMAGES} seed json",
    "evaluate": "arch checkpoint classes data device eval-images json metric preprocess",
    "export": "format json opset out",
    "plan": (
        f"{RECIPE} {AXES} {BOUNDS} {REQUEST} seed seeds checkpoint json picture price-per-hour "
        "workers"
    ),
    "sweep": f"{RECIPE} {AXES} {REQUEST} seed seeds checkpoint json max-bytes max-drop",
    "doctor": "json",
    "report": "json output",
    "scan": "json policy",
    "promote": (
        "against alias data device eval-images json max-bytes max-drop metric min-top1 rollback "
        "version"
    ),
    "stack run": "",
    "store gc": "dry-run force json older-than",
    "store verify": "json",
    "stack up": "json",
    "stack down": "json",
    "stack status": "json",
}
EVERY = {"quiet", "verbose"}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is refused before any server is started."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a server would have been started")

    monkeypatch.setattr("modcap.infra.local.up", refuse)


def run(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def commands(group: Any, prefix: str = "") -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
            continue
        flags = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
        found[f"{prefix}{name}"] = {flag.removeprefix("--") for flag in flags}
    return found


def test_flags_are_the_contract() -> None:
    assert commands(typer.main.get_command(cli.app)) == {
        n: set(f.split()) | EVERY for n, f in FLAGS.items()
    }


class Canary:
    """Unpickling it leaves a mark; nothing here must ever do that."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.mark),))


def truncated(folder: Path) -> Path:
    (folder / "cut.safetensors").write_bytes(GOOD.read_bytes()[:5000])
    return folder / "cut.safetensors"


def with_nan(folder: Path) -> Path:
    tensors = load_file(GOOD)
    next(t for t in tensors.values() if t.ndim == 4)[0, 0, 0, 0] = torch.nan
    save_file(tensors, folder / "nan.safetensors")
    return folder / "nan.safetensors"


def evil(folder: Path) -> Path:
    with (folder / "evil.pth").open("wb") as file:
        torch.save({"weight": Canary(str(folder / "mark"))}, file)
    return folder / "evil.pth"


def raw_pickle(folder: Path) -> Path:
    (folder / "raw.pt").write_bytes(pickle.dumps(Canary(str(folder / "mark"))))
    return folder / "raw.pt"


def npz(folder: Path, count: int, channels: int = 1, size: int = 28, label: int = 0) -> Path:
    file = folder / "images.npz"
    pixels = np.zeros((count, channels, size, size), np.uint8)
    np.savez(file, images=pixels, labels=np.full(count, label))
    return file


CASES: dict[str, Any] = {
    "missing file": (lambda d: [d / "none.safetensors", *ARCH, *DATA], "none.safetensors"),
    "directory": (lambda d: [d, *ARCH, *DATA], "director"),
    "truncated": (lambda d: [truncated(d), *ARCH, *DATA], "cut.safetensors"),
    "code in a checkpoint": (lambda d: [evil(d), *ARCH, *DATA], "evil.pth"),
    "raw pickle": (lambda d: [raw_pickle(d), *ARCH, *DATA], "raw.pt"),
    "NaN weights": (lambda d: [with_nan(d), *ARCH, *DATA], "NaN"),
    "wrong architecture": (
        lambda d: [GOOD, "--arch", "modcap.zoo:vgg_tiny", *DATA],
        "resnet18_narrow.safetensors",
    ),
    "unknown architecture": (lambda d: [GOOD, "--arch", "torchvision:nosuch", *DATA], "nosuch"),
    "no architecture": (lambda d: [GOOD, *DATA], "--arch"),
    "unknown data": (lambda d: [GOOD, *ARCH, "--data", d / "nothing"], "nothing"),
    "wrong size": (lambda d: [GOOD, *ARCH, "--data", npz(d, 3000, 3)], "3"),
    "empty calibration": (lambda d: [GOOD, *ARCH, "--data", npz(d, 0)], "images.npz"),
    "too few images": (lambda d: [GOOD, *ARCH, "--data", npz(d, 100)], "1024"),
    "label too large": (
        lambda d: [GOOD, *ARCH, "--data", npz(d, 3000, label=10)],
        "images.npz: label 10 is none of the network's 10 classes, 0 to 9",
    ),
    "negative label": (
        lambda d: [GOOD, *ARCH, *DATA, "--eval-data", npz(d, 1, label=-7)],
        "images.npz: label -7 is none",
    ),
    "empty test set": (
        lambda d: [GOOD, *ARCH, *DATA, "--eval-data", npz(d, 0)],
        "images.npz: there are no images",
    ),
    "unknown bits": (lambda d: [GOOD, *ARCH, *DATA, "--w-bits", "9"], "w_bits"),
    "one bit": (lambda d: [GOOD, *ARCH, *DATA, "--a-bits", "1"], "a_bits"),
    "k too large": (lambda d: [GOOD, *ARCH, *DATA, "--k", "99"], "--k 99 is larger than"),
    "k not a number": (lambda d: [GOOD, *ARCH, *DATA, "--k", "many"], "--k 'many'"),
    "unknown method": (lambda d: [GOOD, *ARCH, *DATA, "--method", "magic"], "magic"),
    "unknown preset": (lambda d: [GOOD, *ARCH, *DATA, "--preset", "slow"], "quick"),
    "missing recipe": (lambda d: [GOOD, *ARCH, *DATA, "--recipe", d / "r.yaml"], "r.yaml"),
    "unknown flag": (lambda d: [GOOD, *ARCH, *DATA, "--bits", "4"], "--bits"),
    "missing data": (lambda d: [GOOD, *ARCH], "--data"),
    "no test images": (lambda d: [GOOD, *ARCH, *DATA, "--eval-images", "0"], "eval_images"),
    "bad name": (lambda d: [GOOD, *ARCH, *DATA, "--name", "team/net"], "'team/net'"),
    "bad preprocess": (lambda d: [GOOD, *ARCH, *DATA, "--preprocess", "mean=x"], "mean"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = CASES[case]
    code, out, err = run("quantize", *arguments(tmp_path), capsys=capsys)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("modcap: ")
    assert expected in err
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep", "--max-bytes", "0"], "max_bytes: "),
        (["sweep", "--checkpoint", "elsewhere/resnet18_narrow.pt"], "called 'resnet18_narrow'"),
        (["plan", "--checkpoint", "elsewhere/resnet18_narrow.pt"], "called 'resnet18_narrow'"),
        (["promote", "net", "--max-drop", "-1"], "max_drop: "),
        (["evaluate", "s3://bucket/a.safetensors"], "s3://bucket/a.safetensors: cannot be read"),
    ],
)
def test_other_commands_refuse_in_one_line(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODCAP_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    grid = ["--checkpoint", str(GOOD), *ARCH] if arguments[0] in ("sweep", "plan") else []
    code, out, err = run(*arguments, *grid, *DATA, capsys=capsys)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err


def test_addresses_that_are_shown_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    from modcap.flows.registry.mlflow_runs import reaching, run_url

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/base/")
    assert run_url("1", "r") == "https://mlflow.example/base/#/experiments/1/runs/r"
    broken = "API request to https://me:secret@mlflow.example/x failed with exception (broken)"
    with pytest.raises(Unavailable, match=r"to https://mlflow\.example/x") as caught, reaching():
        raise MlflowException(broken)
    assert "secret" not in str(caught.value)


def test_recipe_file_is_read_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("w_bits: 3\na_bits: 3\noptimiser:\n  iterations: 7\n")
    recipe = make_recipe("quick", file, {"w_bits": 2})
    assert (recipe.w_bits, recipe.a_bits, recipe.optimiser.iterations) == (2, 3, 7)
    file.write_text("- a\n- b\n")
    with pytest.raises(InputError, match="give a mapping"):
        make_recipe("quick", file, {})


def test_capacity_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("capacity", GOOD, *ARCH, *DATA, "--k", "2", "--json", capsys=capsys)
    report = json.loads(out)
    assert code == 0
    assert len(report["capacities"]) == len(report["modules"]) == len(report["differentials"]) + 1
    assert sum(report["selected"]) == report["k"] == 2
    assert sorted(name for group in report["groups"] for name in group) == sorted(report["modules"])


def test_what_a_model_prints_is_not_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talkative.py").write_text(
        "from modcap import zoo\n\n"
        "def net():\n    print('building')\n    return zoo.resnet18_narrow()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    place = [GOOD, "--arch", "talkative:net", *DATA, "--preprocess", "mean=0.5,std=0.25", "--json"]
    code, out, err = run("capacity", *place, capsys=capsys)
    assert (code, "building" in err) == (0, True)
    assert json.loads(out)["modules"]


def test_the_baselines_of_a_report_are_plain() -> None:
    from modcap.flows.quantize import rounding_to_nearest, unjoined

    recipe = make_recipe("quick", None, {"tuning": 7, "schedule": "waves", "w_bits": 2})
    nearest = rounding_to_nearest(recipe)
    assert (nearest.method.name, nearest.k, nearest.w_bits) == ("rtn", 0, 2)
    assert (nearest.corrects, nearest.tuning_steps) == (False, 0)
    assert (unjoined(recipe).k, unjoined(recipe).tuning_steps) == (0, 7)
    assert rounding_to_nearest(make_recipe("fast", None, {})).rounding_start == "nearest"


def axes_of(**typed: str) -> dict[str, Any]:
    """The axes of a grid, as they are typed."""
    group = grid_options()
    nothing = dict.fromkeys(parameter.name for parameter in group.parameters())
    return group.given(nothing | typed)


@pytest.mark.parametrize(
    ("k", "found"),
    [("0-2", (0, 1, 2)), ("auto", (None,)), ("auto,0,3-4", (0, 3, 4, None))],
)
def test_the_axis_of_k_holds_numbers_and_auto(k: str, found: tuple[int | None, ...]) -> None:
    assert axes_of(w_bits="2", k=k) == {"w_bits": (2,), "k": found}


@pytest.mark.parametrize(
    "typed",
    [{"k": "auto,x"}, {"k": ""}, {"seeds": "auto"}, {"seeds": "3-1"}, {"w_bits": "2,,4"}],
)
def test_an_axis_that_is_neither_is_refused_by_its_flag(typed: dict[str, str]) -> None:
    (name,) = typed
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} "):
        axes_of(**{"seed" if field == "seeds" else field: text for field, text in typed.items()})


def test_a_wrong_recipe_of_a_policy_is_refused_where_it_stands(tmp_path: Path) -> None:
    from modcap.flows.requests.scan_policy import read_policy

    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n- recipes:\n  - fields: {w_bits: 4}\n  - fields: {w_bits: 40}\n")
    with pytest.raises(InputError, match=r"rules\.0\.recipes\.1: recipe: w_bits: .*given: 40"):
        read_policy(file)
    file.write_text("rules:\n- recipes:\n  - fields: {name: x}\n")
    with pytest.raises(InputError, match=r"rules\.0\.recipes\.0: recipe: name: Extra inputs"):
        read_policy(file)
    file.write_text("secret_key: hunter2\nrules:\n- recipes:\n  - fields: {}\n")
    with pytest.raises(InputError, match="secret_key: Extra inputs") as caught:
        read_policy(file)
    assert "hunter2" not in str(caught.value)


def test_a_grid_is_refused_whole_where_one_k_is_too_large() -> None:
    from modcap.flows.requests.asked import Request
    from modcap.flows.requests.sweep_grid import Sweep, prepare_sweep

    asked = Request(checkpoint=str(GOOD), arch=ARCH[1], data=DATA[1])
    with pytest.raises(InputError, match="--k 99 is larger than"):
        prepare_sweep(Sweep(requests=(asked,), k=(0, 99)))
