"""What `job.watch()` shows of a script: what its ranks print, above one line with its state and newest values."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from paceline.client.events import Event

MOST_VALUES = 6


def show_script(events: Iterable[Event], log: Iterable[str], console: Console | None = None) -> None:
    """Show a script until it ends. log: what its ranks print, in pieces, until the job has ended."""
    console = console or Console(force_jupyter=False, markup=False, emoji=False, highlight=False)
    columns = SpinnerColumn(), TextColumn("{task.description}  {task.fields[values]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("queued", total=None, values="")
        printing = threading.Thread(target=_print_log, args=(log, console), name="log", daemon=True)
        printing.start()
        for event in events:
            match event.kind:
                case "state":
                    progress.update(task, description=event.data["state"].lower())
                case "planned":
                    console.print(f"plan     {event.data['summary']}")
                case "reported" if event.data["rank"] == 0:
                    progress.update(task, values=report_line(event.data))
                case "attempt_lost":
                    console.print(f"restart  {event.data['reason']}")
                case "warning":
                    console.print(f"warning  {event.data.get('fact', '')}")
        printing.join()


def _print_log(log: Iterable[str], console: Console) -> None:
    for text in log:
        console.print(text, end="", soft_wrap=True)


def report_line(data: dict[str, Any]) -> str:
    """One report as a line of text."""
    step = "" if data["step"] is None else f"step {data['step']}  "
    return step + "  ".join(f"{name} {value:.4g}" for name, value in list(data["values"].items())[:MOST_VALUES])
