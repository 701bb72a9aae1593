"""What the command line says of itself, and what every command can do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import Field

from modcap.core.errors import Notice
from modcap.flows import cli
from modcap.flows.cli.fields import Options, sentence, taking
from modcap.flows.cli.options import recipe_options
from modcap.recipe import Recipe


def leaves(group: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = hasattr(command, "commands")
        found |= leaves(command, f"{prefix}{name} ") if below else {prefix + name: command}
    return found


COMMANDS = leaves(typer.main.get_command(cli.app))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence_and_its_default(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = (parameter.help or "").replace("\\", "")
        if parameter.name == "help":
            continue
        assert re.match(r"\S.*[.\]]$", text, re.DOTALL), f"{name}: {parameter.opts}: {text!r}"
        if parameter.param_type_name == "option" and not parameter.required:
            assert "default" in text, f"{name}: {parameter.opts}: {text!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_fits_80_columns_and_ends_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, *name.split(), "-h")
    assert max(map(len, text.splitlines())) <= 80
    assert f"Example: modcap {name}" in text.strip().splitlines()[-1]


def test_options_are_grouped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    panels = re.findall(r"╭─ (.*?) ─+╮", said(capsys, "quantize", "--help"))
    assert panels == [
        "Arguments",
        "Options",
        "Checkpoint and images",
        "Bits and method",
        "Capacity and joining",
        "Steps and schedule",
        "Result",
        "Optimiser",
        "Recipe, in detail",
        "Every command",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"modcap \d+\.\d+\.\d+\S*\n", said(capsys, "--version"))


def test_no_color_is_honoured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1" in said(capsys, "promote", "-h")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", said(capsys, "promote", "-h"))


def test_completion_knows_commands_and_choices() -> None:
    def completed(words: str) -> set[str]:
        asked = {"_MODCAP_COMPLETE": "complete_bash", "COMP_WORDS": words}
        asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        code = "from modcap.flows.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | asked,
            capture_output=True,
            text=True,
            check=True,
        )
        return set(done.stdout.split())

    assert completed("modcap quantize net.pt2 --schedule ") == {"sequential", "waves"}


def test_main_leaves_signals_and_warnings_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    before = signal.getsignal(signal.SIGTERM), warnings.showwarning
    said(capsys, "--version")
    assert (signal.getsignal(signal.SIGTERM), warnings.showwarning) == before


def test_a_new_field_of_a_recipe_is_an_option() -> None:
    class Extended(Recipe):
        damping: float = Field(0.5, ge=0, le=1, description="how much is damped")

    usual = recipe_options()
    group = Options(Extended, usual.panel, usual.panels, presets={"quick": Extended()})
    found: dict[str, Any] = {}

    @taking(given=group)
    def command(given: dict[str, Any]) -> None:
        found.update(given)

    app = typer.Typer()
    app.command()(command)
    run = typer.main.get_command(app)
    typed = ["--damping", "0.25", "--k", "auto", "--correction", "no", "--iterations", "7"]
    run.main(typed, standalone_mode=False)
    assert found == {
        "damping": 0.25,
        "k": None,
        "correction": "no",
        "optimiser": {"iterations": 7},
    }
    (damping,) = [p for p in run.params if p.name == "damping"]
    assert damping.help == r"How much is damped (0 to 1). \[default: 0.5]"
    made = Recipe.make({name: value for name, value in found.items() if name != "damping"})
    assert (made.k, made.correction, made.optimiser.iterations) == (None, False, 7)


def test_sentences() -> None:
    assert sentence("bits of weights") == "Bits of weights."
    assert sentence("timm:NAME, or a file.", "none") == r"timm:NAME, or a file. \[default: none]"
    assert sentence("all by default", "none") == "All by default."


def test_warnings_of_libraries_are_shown_where_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import warnings

    shown: list[str] = []
    monkeypatch.setattr("warnings.showwarning", lambda message, *_: shown.append(str(message)))

    def warning(*_: Any) -> dict[str, Any]:
        warnings.showwarning(UserWarning("Add type hints"), UserWarning, "mlflow.py", 1)
        warnings.showwarning(Notice("of ours"), Notice, "modcap.py", 1)
        return {"file": "f", "format": "pt2", "bytes": 3}

    monkeypatch.setattr("modcap.flows.registry.exports.export_artifact", warning)
    for flag, expected in (("--quiet", []), ("--verbose", ["Add type hints"])):
        with pytest.raises(SystemExit):
            cli.main(["export", "a", "--out", str(tmp_path / "f"), flag])
        assert shown == expected
        assert capsys.readouterr().err == "modcap: of ours\n"
