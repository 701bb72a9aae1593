"""Tables on stdout, as wide as the terminal, or 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "print_table"]


@dataclass(frozen=True)
class Column:
    """A heading; figures stand at the right."""

    heading: str
    justify: Literal["left", "right"] = "right"


def print_table(
    title: str | None, columns: Sequence[Column], rows: Iterable[Sequence[str]]
) -> None:
    """Prints ``rows``, whose texts are shown as they are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title and Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column in columns:
        table.add_column(column.heading, justify=column.justify, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
