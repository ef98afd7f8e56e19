"""What cutting a batch costs: one worker's rate by the number of microbatches, and what the default number costs.

    python benchmarks/grid.py [--repeats 5] [--cores 2] [--results FOLDER]

There is no peer: the yardstick is the same job with one microbatch, in the same repeat on the same cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from _alone import adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Figure, Report, console, record

TIMEOUT_S = 300
COST_AIMS = {"cnn": 0.05, "transformer": 0.05}
LOSS_TOLERANCE = 1e-3  # relative: other cuts add the same gradients in other orders


def main() -> int:
    options = _options()
    cores = sorted(os.sched_getaffinity(0))[-options.cores :]
    adopt_orphans()
    report = Report("grid", options.repeats)
    costs: dict[str, Figure] = {}
    worst = 0.0
    for repeat in range(options.repeats):
        _, found = run_alone(python("paceline_grid.py", str(repeat)), TIMEOUT_S, cores)
        for workload, curve in (found or {}).items():
            worst = max(worst, _fill(report, costs, workload, curve["default"], curve["runs"]))
        shown = ", ".join(f"{workload} {figure.runs[-1]:+.1%}" for workload, figure in costs.items())
        console.print(f"repeat {repeat + 1} of {options.repeats}: the default costs {shown}")
    report.figures |= {figure.name: figure for figure in costs.values()}
    report.aims = [Aim.at_most(costs[name].name, costs[name].median, bound) for name, bound in COST_AIMS.items()]
    report.equal_losses = worst <= LOSS_TOLERANCE
    report.notes.append(
        f"the losses differ from one microbatch's by at most {worst:.1e}; {LOSS_TOLERANCE:g} is allowed"
    )
    report.details |= {"cores": len(cores), "threads": 1, "workers": 1}
    return report.finish(options.results)


def _fill(
    report: Report, costs: dict[str, Figure], workload: str, default: int, runs: dict[str, dict[str, Any]]
) -> float:
    """Record one repeat's curve of one workload; return the largest relative difference of its losses."""
    whole = runs["1"]
    for number in sorted(runs, key=int):
        name = f"{workload}, {number}{' (default)' if int(number) == default else ''}"
        record(report.figures, name, "samples/s", runs[number]["samples_per_s"])
        ratio = runs[number]["samples_per_s"] / whole["samples_per_s"]
        record(report.figures, f"{name}, of one microbatch's rate", "ratio", ratio)
    cost = Figure(f"{workload}, time that the default of {default} adds", "ratio")
    costs.setdefault(workload, cost).runs.append(whole["samples_per_s"] / runs[str(default)]["samples_per_s"] - 1)
    return max(abs(run["loss"] / whole["loss"] - 1) for run in runs.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="that the worker, with its master, is pinned to")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
