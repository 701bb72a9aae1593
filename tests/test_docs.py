"""Commands of README and docs/ are commands: each parses, or its block says why it is not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from docs.draw_concepts import FOLDER, PICTURES
from modcap.flows import cli
from tests.rooms import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(
    r"(<!-- not run: ([^>]+) -->\n)?^( *)```(sh|bash|console)\n(.*?)^ *```", re.M | re.S
)
_INDENTED = re.compile(r"^    ((?:make|python -m|modcap) .*)$", re.M)
_LEFT_OUT = {"…", "...", "[...]"}


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Lines of commands, and why they are not run, of each block of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        yield match[5], match[2] or ""
    fenced = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    for match in _INDENTED.finditer(fenced):
        yield match[1], ""


def commands(block: str) -> Iterator[list[str]]:
    """Words of each command, without comments, redirections and what follows a pipe."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        ends = (i for i, word in enumerate(words) if word in (">", "|", "2>", "&&"))
        if words := words[: next(ends, None)]:
            yield words


def check_modcap(words: list[str]) -> None:
    """The command and each option exist, and what they need is there."""
    group = typer.main.get_command(cli.app)
    left = [word for word in words if word not in _LEFT_OUT]
    while hasattr(group, "commands"):
        assert left, words
        assert left[0] in group.commands, words
        group = group.commands[left.pop(0)]
    complete = len(left) == len(words) - 1 or "…" not in words
    context = group.make_context("modcap", left, resilient_parsing=not complete)
    context.close()


def check_make(words: list[str]) -> None:
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if "=" not in word:
            assert re.search(rf"^{re.escape(word)}:", targets, re.M), word


def check_python(words: list[str]) -> None:
    assert words[0] == "-m", words
    name = words[1].replace(".", "/")
    assert (ROOT / f"{name}.py").exists() or (ROOT / name / "__main__.py").exists(), words


CHECKS = {"modcap": check_modcap, "make": check_make, "python": check_python}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_pages_are_commands(page: Path) -> None:
    for block, why in blocks(page):
        for words in commands(block) if not why else ():
            program = Path(words[0]).name
            assert program in CHECKS or words[0] == ".", f"{words}: say why it is not run"
            if program in CHECKS:
                CHECKS[program](words[1:])


def test_pages_have_commands() -> None:
    assert (
        sum(len(list(commands(block))) for page in PAGES for block, why in blocks(page) if not why)
        > 60
    )


def test_what_is_no_command_is_found() -> None:
    for words in (["quantize", "x.pt2", "--no-such"], ["quantize", "--k"], ["quantize"]):
        with pytest.raises(cli._UsageError):
            check_modcap(words)
    for check, words in ((check_modcap, ["quantise"]), (check_make, ["no-such"])):
        with pytest.raises(AssertionError):
            check(words)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_concepts_are_those_of_today(name: str) -> None:
    drawn = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == PICTURES[name](), "run python -m docs.draw_concepts"
