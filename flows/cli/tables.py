"""Tables on stdout, as wide as the terminal, or 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from modcap.core.errors import printable

__all__ = ["Column", "print_table", "print_warnings"]


@dataclass(frozen=True)
class Column:
    """A heading; figures stand at the right."""

    heading: str
    justify: Literal["left", "right"] = "right"


def print_table(
    title: str | None, columns: Sequence[Column], rows: Iterable[Sequence[str]]
) -> None:
    """Prints ``rows``; their texts may be anybody's: brackets are no markup, and nothing in them
    moves a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title and Text(printable(title)),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column.heading, justify=column.justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, text.split("\n")))) for text in row))
    Console(highlight=False).print(table)


def print_warnings(texts: Iterable[str]) -> None:
    """What says that a result may be wrong, each once, so that nobody overlooks it."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for text in dict.fromkeys(texts):
        console.print(Text(f"WARNING: {printable(text)}", style="bold red"), soft_wrap=True)
