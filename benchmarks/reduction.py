"""Two gradient sums that do not depend on who computed what, beside DDP's, which does: rate, bytes, digests, errors.

    python benchmarks/reduction.py [--repeats 5] [--workers 2 4] [--results FOLDER]

`tree` is ours: float sums along a fixed tree. `int64` and `int32` are the other candidate: fixed-point integers under a
common scale. Same model, data, batch and threads; the two take the batch in 8 microbatches, DDP each rank's part in one
pass. A repeat runs all methods one after the other, for each number of workers, and a ratio is that of one repeat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _alone import ContestantFailed, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

TIMEOUT_S = 120
LOSS_TOLERANCE = 1e-3  # relative, of the mean over all steps: the sums are rounded differently
METHODS = ("tree", "int64", "int32", "ddp")
CANDIDATES = METHODS[:3]


def run(method: str, workers: int) -> dict[str, Any]:
    return run_alone(python("reducing.py", method, str(workers)), TIMEOUT_S)[1] or {}


def run_all(workers: int, turn: int) -> dict[str, dict[str, Any]]:
    """Every method once; the turn tells which one begins."""
    begin = turn % len(METHODS)
    found = {method: run(method, workers) for method in METHODS[begin:] + METHODS[:begin]}
    rates = ", ".join(f"{method} {found[method]['samples_per_s']:.0f}" for method in METHODS)
    console.print(f"repeat {turn + 1}, {workers} workers, samples/s: {rates}")
    return found


def keep(report: Report, workers: int, found: dict[str, dict[str, Any]]) -> None:
    """Record one repeat's figures."""
    for method, result in found.items():
        into, name = report.figures if method == "tree" else report.peers, f"{method}, {workers} workers"
        record(into, name, "samples/s", result["samples_per_s"])
        record(into, f"{name}, sent a step", "bytes", result["bytes_per_step"])
        record(into, f"{name}, error of a step", "relative", result["error"]["whole"])
        record(into, f"{name}, error of an element", "relative", result["error"]["element"])
        if method != "ddp":
            record(into, f"{name}, of DDP's rate", "ratio", result["samples_per_s"] / found["ddp"]["samples_per_s"])
            record(into, f"{name}, of DDP's bytes", "ratio", result["bytes_per_step"] / found["ddp"]["bytes_per_step"])


def judge(report: Report, workers: list[int], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Digests, losses, and the aim: that ours is the faster candidate."""
    same = {method: len({result["digest"] for result in runs[method]}) == 1 for method in METHODS}
    report.details["same_digest"] = {method: "yes" if same[method] else "no" for method in METHODS}
    report.details["steps_redone"] = {method: [result["redone"] for result in runs[method]] for method in METHODS}
    for count in workers:
        rates = {
            method: (report.figures | report.peers)[f"{method}, {count} workers, of DDP's rate"].median
            for method in CANDIDATES
        }
        best = max(rates["int64"], rates["int32"])
        report.aims.append(
            Aim.at_least(f"{count} workers, tree's rate of the better integers'", rates["tree"] / best, 1)
        )
    losses = [result["mean_loss"] for results in runs.values() for result in results]
    spread = max(losses) / min(losses) - 1
    report.equal_losses = spread <= LOSS_TOLERANCE
    report.notes.append(f"mean loss over all steps differs by at most {spread:.1e}; {LOSS_TOLERANCE:g} is allowed")
    verdicts = ", ".join(f"{method} {'yes' if same[method] else 'no'}" for method in METHODS)
    report.notes.append(f"one digest in all runs, on any number of workers (1 too, but for DDP): {verdicts}")


def main() -> int:
    options = _options()
    adopt_orphans()
    report = Report("reduction", options.repeats)
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for method in CANDIDATES:
        runs[method].append(run(method, 1))
    for repeat in range(options.repeats):
        for workers in options.workers:
            try:
                found = run_all(workers, repeat)
            except ContestantFailed as failed:
                report.notes.append(f"repeat {repeat + 1} on {workers} workers is left out: {failed}")
                continue
            keep(report, workers, found)
            for method, result in found.items():
                runs[method].append(result)
    judge(report, options.workers, runs)
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
