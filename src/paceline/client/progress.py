"""What `job.watch()` shows: a bar, and a line for each evaluation; fine in a terminal, a notebook and a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from paceline.client.events import Event
from paceline.spec import TrainOptions
from paceline.stop import step_bound

REASONS = {
    "preempted": "waits", "worker_lost": "lost", "attempt_lost": "lost", "corrected": "changed",
    "node_quarantined": "removed",
}  # fmt: skip
NOT_VALUES = ("at", "step", "epoch", "samples", "seconds")


def show(events: Iterable[Event], options: TrainOptions, console: Console | None = None) -> None:
    """Show a job's events until it ends."""
    # rich's own notebook output needs widgets; and brackets in a message are no markup
    console = console or Console(force_jupyter=False, markup=False, emoji=False, highlight=False)
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
            case "probed":
                self._note(f"probe    {probe_line(data)}")
            case "planned":
                self._note(f"plan     {data['summary']}")
            case "progress":
                self._steps_per_epoch = data["steps_per_epoch"]
                self._advance(data["step"], data["loss"], data["samples_per_s"])
            case "live":
                self._advance(data["step"], data["loss"], data["samples_per_s"])
            case "evaluated":
                self._note(evaluation_line(data))
            case "warning":
                self._note(f"warning  {data.get('fact', '')}")
            case "worker_joined":
                self._note(f"joined   rank {data['rank']} on {data['node']}")
            case kind if kind in REASONS:
                self._note(f"{REASONS[kind]:<9}{data['reason']}")

    def _note(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line)

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


def probe_line(data: dict[str, Any]) -> str:
    """What a probe found, as a line of text."""
    memory = f"{data['worker_bytes'] / 2**20:,.0f} MiB"
    if not data["fits"]:
        return f"{data['node']}: needs {memory} or more, and may take {data['memory'] / 2**20:,.0f} MiB"
    cell = data["cells"][-1]
    return f"{data['node']}: {cell['seconds'] * 1e3:.3g} ms for a microbatch of {cell['samples']}, {memory}"


def evaluation_line(data: dict[str, Any]) -> str:
    """One evaluation as a line of text."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in data.items() if name not in NOT_VALUES)
    return f"epoch {data['epoch']:<7.2f} {values}"
