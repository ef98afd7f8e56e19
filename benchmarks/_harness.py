"""What every benchmark needs: figures with their spread, aims, the facts of the machine, the report."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
VERSIONS_OF = ("paceline", "torch", "ray", "torchft", "numpy")
BUSY_FROM = 0.3  # load per core at which other work shows in the figures

console = Console(width=120 if not sys.stdout.isatty() else None, highlight=False)


@dataclass
class Figure:
    """One measured quantity. runs: a value for each repeat, in their order."""

    name: str
    unit: str
    runs: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit, "median": self.median, "min": min(self.runs), "max": max(self.runs), "runs": self.runs
        }  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """What was to be reached, and what was."""

    aim: str
    reached: float | None
    met: bool

    @classmethod
    def at_most(cls, aim: str, reached: float | None, bound: float) -> Aim:
        """reached: None where it could not be measured."""
        return cls(f"{aim} <= {bound:g}", reached, reached is not None and reached <= bound)

    @classmethod
    def at_least(cls, aim: str, reached: float | None, bound: float) -> Aim:
        return cls(f"{aim} >= {bound:g}", reached, reached is not None and reached >= bound)


@dataclass
class Report:
    """A benchmark's outcome. figures: ours; peers: theirs, of the same run; notes: what a reader must know."""

    benchmark: str
    repeats: int
    figures: dict[str, Figure] = field(default_factory=dict)
    peers: dict[str, Figure] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    equal_losses: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def finish(self, folder: Path) -> int:
        """Show it, write it to `folder`, print it as the last line; the exit code: 0 where the losses were equal.

        A missed aim is a result, recorded like any other; unequal losses mean that nothing was compared.
        """
        self._show()
        data = {
            "benchmark": self.benchmark,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **commit(),
            "command": " ".join(["python", f"benchmarks/{self.benchmark}.py", *sys.argv[1:]]),
            "repeats": self.repeats,
            "machine": self.machine,
            "equal_losses": self.equal_losses,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "peers": {name: figure.to_json() for name, figure in self.peers.items()},
            "aims": [asdict(aim) for aim in self.aims],
            "notes": self.notes,
            "details": self.details,
        }
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{self.benchmark}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.json"
        written.write_text(json.dumps(data, indent=1) + "\n")
        console.print(f"written to {written.name} in {folder.name}/")
        print(json.dumps(data), flush=True)
        return 0 if self.equal_losses else 1

    def _show(self) -> None:
        console.print(figures_table(f"{self.benchmark}: median of {self.repeats}", self.figures, self.peers))
        for aim in self.aims:
            reached = "not measured" if aim.reached is None else f"{aim.reached:.3g}"
            console.print(f"{'met   ' if aim.met else 'MISSED'}  {aim.aim}: {reached}")
        console.print(f"equal losses: {'yes' if self.equal_losses else 'NO: the contestants did not do the same work'}")
        for note in self.notes:
            console.print(f"note: {note}")


def figures_table(title: str, figures: Mapping[str, Figure], peers: Mapping[str, Figure]) -> Table:
    table = Table("", "unit", "median", "min", "max", "runs", title=title, title_justify="left")
    for kind, rows in (("paceline", figures), ("peers", peers)):
        if rows:
            table.add_section()
            table.add_row(f"[bold]{kind}")
        for figure in rows.values():
            values = [f"{value:.4g}" for value in (figure.median, min(figure.runs), max(figure.runs))]
            table.add_row(figure.name, figure.unit, *values, str(len(figure.runs)))
    return table


def record(into: dict[str, Figure], name: str, unit: str, value: float) -> None:
    """Add one run to a figure."""
    into.setdefault(name, Figure(name, unit)).runs.append(value)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    ordered = sorted(seconds)
    return {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}


def commit() -> dict[str, Any]:
    """The commit that was measured; `dirty` where the files were not exactly its."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ":/src", ":/benchmarks/*.py")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures. load: of the minute before the benchmark began."""
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS_OF},
        "load": round(load, 2),
        "busy": load > BUSY_FROM * len(os.sched_getaffinity(0)),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
