"""What Paceline costs: one worker's rate beside a bare PyTorch loop's, a checkpoint's time, the API's latency.

    python benchmarks/overhead.py [--repeats 5] [--cores 2] [--workload NAME]… [--results FOLDER]

Loop and worker do the same microbatches of the same samples in the same order with one thread, each alone on the
same cores; a repeat's two runs follow each other, and their ratio is what counts.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _alone import CONTESTANTS, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Figure, Report, console, quantiles, record

sys.path.insert(0, str(CONTESTANTS))
import steady

TIMEOUT_S = 300
RATIO_AIM = 0.97
CHECKPOINTS_A_RUN = 5  # many more than in practice, so that what one costs shows
CHECKPOINT_EVERY_S = 30.0  # the default
CHECKPOINT_AIM = 0.02  # of the time
LOSS_TOLERANCE = 1e-3  # relative: loop and worker add the same gradients in other orders
LOSSES = ("mean_loss", "last_loss")


@dataclass(frozen=True)
class Pair:
    """A worker's run, one with many checkpoints, and the bare loop's: `{samples_per_s, mean_loss, …}` of each."""

    workload: str
    ours: dict[str, Any]
    saving: dict[str, Any]
    bare: dict[str, Any]

    @property
    def ratio(self) -> float:
        return float(self.ours["samples_per_s"] / self.bare["samples_per_s"])

    @property
    def checkpoint_s(self) -> float:
        """By which each checkpoint made the training longer; noise can make it negative."""
        work = steady.WORKLOADS[self.workload]
        samples = (work.steps - steady.WARM_UP_STEPS) * work.batch
        longer_s = samples / self.saving["samples_per_s"] - samples / self.ours["samples_per_s"]
        return float(longer_s / self.saving["checkpoints"])

    @property
    def loss_difference(self) -> float:
        return max(abs(float(self.ours[name] / self.bare[name]) - 1) for name in LOSSES)


def run_pair(workload: str, cores: list[int], ours_first: bool) -> Pair:
    every = steady.WORKLOADS[workload].steps // (CHECKPOINTS_A_RUN + 1)
    commands = {
        "saving": python("paceline_steady.py", workload, "--checkpoint-every", str(every)),
        "ours": python("paceline_steady.py", workload),
        "bare": python("bare_loop.py", workload),
    }
    names = list(commands)[:: 1 if ours_first else -1]
    found = {name: run_alone(commands[name], TIMEOUT_S, cores)[1] or {} for name in names}
    return Pair(workload, **found)


def main() -> int:
    options = _options()
    cores = sorted(os.sched_getaffinity(0))[-options.cores :]
    adopt_orphans()
    report = Report("overhead", options.repeats)
    pairs, latencies = [], []
    for repeat in range(options.repeats):
        for workload in options.workload or list(steady.WORKLOADS):
            pairs.append(run_pair(workload, cores, ours_first=bool(repeat % 2)))
            console.print(f"repeat {repeat + 1} of {options.repeats}: {workload} {pairs[-1].ratio:.3f}")
        latencies.append(run_alone(python("api_latency.py"), TIMEOUT_S)[1] or {})
    _fill_rates(report, pairs)
    _fill_latencies(report, latencies)
    report.details |= {"cores": len(cores), "threads": 1, "training_workers_beside_api": latencies[0]["workers"]}
    return report.finish(options.results)


def _fill_rates(report: Report, pairs: list[Pair]) -> None:
    for pair in pairs:
        record(report.figures, f"{pair.workload}, of the bare loop's rate", "ratio", pair.ratio)
        record(report.figures, f"{pair.workload}, worker", "samples/s", pair.ours["samples_per_s"])
        record(report.peers, f"{pair.workload}, bare loop", "samples/s", pair.bare["samples_per_s"])
        record(report.figures, f"{pair.workload}, a checkpoint", "s", pair.checkpoint_s)
        share = pair.checkpoint_s / CHECKPOINT_EVERY_S
        record(report.figures, f"{pair.workload}, checkpoints every {CHECKPOINT_EVERY_S:g} s", "of the time", share)
    ratios = [figure for figure in report.figures.values() if figure.unit == "ratio"]
    report.aims = [Aim.at_least(figure.name, figure.median, RATIO_AIM) for figure in ratios]
    shares = [figure for figure in report.figures.values() if figure.unit == "of the time"]
    report.aims += [Aim.at_most(figure.name, figure.median, CHECKPOINT_AIM) for figure in shares]
    worst = max(pairs, key=lambda pair: pair.loss_difference)
    report.equal_losses = worst.loss_difference <= LOSS_TOLERANCE
    report.details["losses"] = {p.workload: {n: [p.ours[n], p.bare[n]] for n in LOSSES} for p in pairs}
    report.notes.append(
        f"the mean loss over all steps and the last step's: worker and loop differ by at most "
        f"{worst.loss_difference:.1e} of it ({worst.workload}); {LOSS_TOLERANCE:g} is allowed"
    )


def _fill_latencies(report: Report, latencies: list[dict[str, Any]]) -> None:
    """Idle ones are the yardstick of those beside a training; both are ours, there is no peer."""
    for found in latencies:
        for when in ("idle", "training"):
            for path, seconds in found[when].items():
                for name, value in quantiles(seconds).items():
                    _record_ms(report.figures, f"GET /api/v1/{path}, {when}, {name}", value)


def _record_ms(into: dict[str, Figure], name: str, seconds: float) -> None:
    record(into, name, "ms", 1e3 * seconds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="that loop and worker, with its master, are pinned to")
    parser.add_argument("--workload", action="append", choices=list(steady.WORKLOADS), help="only these")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
