"""What `job.watch()` shows: a bar, and a line for each evaluation; fine in a terminal, a notebook and a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paceline.client.events import Event
from paceline.spec import TrainOptions
from paceline.stop import step_bound

NOT_VALUES = ("at", "step", "epoch", "samples", "seconds")


def show(events: Iterable[Event], options: TrainOptions, console: Console | None = None) -> None:
    """Show a job's events until it ends."""
    console = console or Console(force_jupyter=False)  # rich's own notebook output needs widgets
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[epoch]}  {task.fields[values]}  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        shown = _Shown(progress, progress.add_task("queued", total=None, epoch="", values="", rate=""), options)
        for event in events:
            shown.take(event)


class _Shown:
    def __init__(self, progress: Progress, task: TaskID, options: TrainOptions) -> None:
        self._progress, self._task, self._options = progress, task, options
        self._steps_per_epoch = 0

    def take(self, event: Event) -> None:
        data = event.data
        match event.kind:
            case "state":
                self._state(data)
            case "planned":
                self._progress.console.print(f"plan     {data['summary']}", highlight=False)
            case "progress":
                self._steps_per_epoch = data["steps_per_epoch"]
                self._advance(data["step"], data["loss"], data["samples_per_s"])
            case "live":
                self._advance(data["step"], data["loss"], data["samples_per_s"])
            case "evaluated":
                self._progress.console.print(evaluation_line(data), highlight=False)
            case "warning":
                self._progress.console.print(f"warning  {data.get('fact', '')}", highlight=False)
            case "preempted":
                self._progress.console.print(f"waits    {data['reason']}", highlight=False)
            case "worker_lost" | "attempt_lost":
                self._progress.console.print(f"lost     {data['reason']}", highlight=False)

    def _state(self, data: dict[str, Any]) -> None:
        self._progress.update(self._task, description=data["state"].lower())

    def _advance(self, step: int, loss: float, rate: float) -> None:
        total = step_bound(self._options.stop, self._steps_per_epoch) if self._steps_per_epoch else None
        epoch = f"epoch {step / self._steps_per_epoch:.2f}" if self._steps_per_epoch else f"step {step}"
        self._progress.update(
            self._task,
            completed=step,
            total=total,
            epoch=epoch,
            values=f"loss {loss:.4f}",
            rate=f"{rate:,.0f} samples/s",
        )


def evaluation_line(data: dict[str, Any]) -> str:
    """One evaluation as a line of text."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in data.items() if name not in NOT_VALUES)
    return f"epoch {data['epoch']:<7.2f} {values}"
