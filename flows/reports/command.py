"""The command that makes a run again, as one piece to paste into a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["command_of"]

_OPTIONS = (
    *("arch", "data", "eval_data", "eval_images", "preprocess", "classes"),
    *("metric", "name"),
)


def command_of(
    checkpoint: str,
    recipe: Mapping[str, Any],
    request: Mapping[str, Any],
    source: Mapping[str, str],
) -> str:
    """Writes the recipe to a file, and quantizes by it. Where the recipe leaves k open, it is
    chosen again, alike.

    Args:
        checkpoint: as the run names it.
        recipe: its fields.
        request: what else was asked for; where a report has none, ``source`` knows the most of it.
        source: where checkpoint and images came from.
    """
    written = json.dumps(recipe, indent=1, sort_keys=True)
    words = [f"modcap quantize {shlex.quote(checkpoint)}", *_options({**source, **request})]
    lines = " \\\n  ".join([*words, "--recipe recipe.json"])
    return f"cat > recipe.json <<'END'\n{written}\nEND\n{lines}"


def _options(asked: Mapping[str, Any]) -> Iterator[str]:
    for name in _OPTIONS:
        value = asked.get(name)
        if value not in (None, ""):
            yield f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
    if asked.get("onnx"):
        yield "--onnx"
