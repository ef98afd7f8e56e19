"""What commands print: text for people, or one JSON document on stdout for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from paceline.errors import PacelineError, UserCodeError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

WIDTH_OF_A_PIPE = 240  # what is no terminal has no width; rich would fold tables at 80


def console(stderr: bool = False) -> Console:
    """A console that prints names and messages as they are: brackets in them are no markup."""
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = WIDTH_OF_A_PIPE
    return made


def show(as_json: bool, document: Any, *texts: RenderableType) -> None:
    """Print the document where JSON is wanted, the texts where it is not."""
    if as_json:
        stdout = sys.__stdout__  # sys.stdout is stderr now, see app.main
        assert stdout is not None
        stdout.write(json.dumps(document) + "\n")
        stdout.flush()
        return
    from rich.table import Table

    for text in texts:
        console().print(text, soft_wrap=not isinstance(text, Table))


def show_error(as_json: bool, error: PacelineError) -> None:
    """Fact and remedy, and the user's own traceback; never ours."""
    if as_json:
        show(True, {"error": error.to_json()})
        return
    screen = console(stderr=True)
    screen.print("[bold red]error[/]  ", end="", markup=True)
    screen.print(error.fact, soft_wrap=True)
    if isinstance(error, UserCodeError):
        screen.print(f"\n{error.traceback.rstrip()}", soft_wrap=True)
    elif error.remedy:
        screen.print("[bold green]fix[/]    ", end="", markup=True)
        screen.print(error.remedy, soft_wrap=True)


def pairs(values: Iterable[tuple[str, Any]]) -> Text:
    """Names and values, one pair a line; pairs without a value are left out.

    Text, no table: a terminal wraps it by itself, so that a long value, such as a command, can be copied whole.
    """
    from rich.text import Text

    told = [(name, str(value)) for name, value in values if value not in (None, "")]
    width = max(len(name) for name, _ in told)
    lines = [Text.assemble((name.ljust(width), "bold"), "  ", value) for name, value in told]
    return Text("\n").join(lines)


def rows(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> Table:
    """A plain table, as wide as its content; in a narrow terminal, the last column folds."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        is_last = column == columns[-1]
        table.add_column(column, no_wrap=not is_last, overflow="fold", min_width=12 if is_last else None)
    for line in lines:
        table.add_row(*map(str, line))
    return table


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


def si(number: float) -> str:
    """A large number with the prefix of its unit: `52.1 G`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}"
    return f"{number:.0f} "


def span(seconds: float) -> str:
    """A length of time as people say it: `8 s`, `3 min`, `5 h`, `12 d`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def values(evaluation: dict[str, float | None]) -> str:
    """The values of one evaluation, as one text."""
    shown = {name: value for name, value in evaluation.items() if name not in ("step", "epoch", "samples", "seconds")}
    return "  ".join(f"{name} {'nan' if value is None else f'{value:.4f}'}" for name, value in shown.items())
