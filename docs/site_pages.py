"""What mkdocs adds to the pages of this folder: those of options and recipe fields, from the code.

Links out of this folder become the path of the file in the repository: a site has no such page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from modcap.flows import cli
from modcap.flows.cli.options import recipe_options

__all__ = ["on_files", "on_page_markdown", "options_page", "recipe_page"]

_OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+(?P<path>[\w./-]+)(?:#[\w-]*)?\)")
_WITHIN = re.compile(r"(?:[\w-]+/)*[\w-]+\.md$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in (("options", options_page()), ("recipe", recipe_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names files of the repository in place of links to them."""

    def named(found: re.Match[str]) -> str:
        path = found["path"]
        if files.get_file_from_path(path) is not None:
            return found[0]
        bare = found["text"].strip("`")
        return f"`{path}`" if bare == path else f"{found['text']} (`{path}`)"

    return _OUTSIDE.sub(named, markdown)


def options_page() -> str:
    """Every command, its options by their groups, and what they do."""
    lines = [
        "# Commands and options",
        "",
        "As `modcap COMMAND --help` says them; this page is made from the code.",
        "",
    ]
    for name, command in _commands(typer.main.get_command(cli.app), ()):
        lines += [f"## modcap {name}", "", _plain(command.help or ""), ""]
        lines += [f"    {_usage(name, command)}", ""]
        for panel, params in _panels(command):
            lines += [f"**{panel}**", "", "| option | what it does |", "|---|---|"]
            lines += [
                f"| {_flags(each)} | {_cell(getattr(each, 'help', '') or '')} |" for each in params
            ]
            lines += [""]
    return "\n".join(lines)


def recipe_page() -> str:
    """Every field of a recipe."""
    lines = [
        "# Recipe fields",
        "",
        "A recipe is all that decides a result. A file holds fields by their names, YAML or JSON, "
        "nested where a name has dots (`optimiser: {iterations: 500}`); each is an option of "
        "`modcap quantize`, `sweep`, `plan` and `capacity`, too, and flags win over the file. "
        'In Python: `modcap.Recipe.preset("quick", w_bits=2)`. This page is made from the code.',
        "",
        "| field | option | what it does |",
        "|---|---|---|",
    ]
    for row in recipe_options().rows():
        flag = _code(f"{row.flag} {row.metavar or ''}")
        lines.append(f"| {_code(row.field)} | {flag} | {_cell(row.sentence)} |")
    return "\n".join([*lines, ""])


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def _usage(name: str, command: Any) -> str:
    named = [_argument(p) for p in command.params if p.param_type_name == "argument"]
    return " ".join(["modcap", name, *named, "[OPTIONS]"])


def _argument(param: Any) -> str:
    shown = str(param.metavar or param.name).upper() + ("..." if param.nargs == -1 else "")
    return shown if param.required else f"[{shown}]"


def _panels(command: Any) -> Iterable[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for each in command.params:
        if getattr(each, "hidden", False) or each.name == "help":
            continue
        kind = "Arguments" if each.param_type_name == "argument" else "Options"
        found.setdefault(getattr(each, "rich_help_panel", None) or kind, []).append(each)
    return found.items()


def _flags(param: Any) -> str:
    if param.param_type_name == "argument":
        return _code(_argument(param))
    shown = ", ".join(_code(flag) for flag in (*param.opts, *param.secondary_opts))
    return shown if param.is_flag or not param.metavar else f"{shown} {_code(param.metavar)}"


def _code(text: str) -> str:
    """Code in a cell of a table, where a bar would end the cell."""
    safe = text.strip().replace("<", "&lt;").replace("|", "&#124;").replace("[", "&#91;")
    return f"<code>{safe}</code>"


def _plain(text: str) -> str:
    return text.replace("\\[", "[").replace("\n\n", "\n").strip()


def _cell(text: str) -> str:
    return _plain(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
