"""Exact training on workers of speeds 4:1:1:1, beside what the best split allows and beside ordinary DDP.

    python benchmarks/unequal.py [--repeats 5] [--results FOLDER]

Speeds are quotas of processor time, by cgroups (version 1, as root). Bare loops under the same quotas, which run at
once and exchange nothing, tell how fast each worker is; from that follows the best split of the microbatches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _alone import CONTESTANTS, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

sys.path.insert(0, str(CONTESTANTS))
import unequal

TIMEOUT_S = 300
LOSS_TOLERANCE = 1e-2  # relative: batches are cut differently and summed in other orders
RATE_AIM = 0.9
SCRIPTS = {"alone": "bare_unequal.py", "ddp": "ddp_unequal.py", "ours": "paceline_unequal.py"}


def best_rate(rates: Sequence[float]) -> float:
    """Samples/s of the best whole split: batch / max(cells of a worker * its time for a cell), exchanges for nothing.

    rates: each worker's own. The time of a step is that of some worker's last cell, so only those times need a look.
    """
    cell_s = [unequal.BATCH / unequal.MICROBATCHES / rate for rate in rates]
    times = sorted(cells * seconds for seconds in cell_s for cells in range(1, unequal.MICROBATCHES + 1))
    enough = (t for t in times if sum(int(t / seconds + 1e-9) for seconds in cell_s) >= unequal.MICROBATCHES)
    return unequal.BATCH / next(enough)


def run_all(repeat: int) -> dict[str, dict[str, Any]]:
    """Every contestant once, beginning with another one in each repeat."""
    names = list(SCRIPTS)
    order = names[repeat % len(names) :] + names[: repeat % len(names)]
    return {name: run_alone(python(SCRIPTS[name]), TIMEOUT_S)[1] or {} for name in order}


def loss_difference(found: dict[str, dict[str, Any]]) -> float:
    """The largest relative one: our mean to DDP's, and the bare loop's to that of DDP's steps as far as it came."""
    ddp, bare = found["ddp"]["losses"], found["alone"]["losses"]
    common = min(len(ddp), len(bare))
    return max(
        abs(found["ours"]["mean_loss"] * len(ddp) / sum(ddp) - 1), abs(sum(bare[:common]) / sum(ddp[:common]) - 1)
    )


def main() -> int:
    options = _options()
    adopt_orphans()
    report = Report("unequal", options.repeats)
    worst, shares = 0.0, []
    for repeat in range(options.repeats):
        found = run_all(repeat)
        best = best_rate(found["alone"]["rates"])
        ours, ddp = found["ours"]["samples_per_s"], found["ddp"]["samples_per_s"]
        record(report.figures, "of the best split's rate", "ratio", ours / best)
        record(report.figures, "paceline", "samples/s", ours)
        record(report.peers, "DDP, of the best split's rate", "ratio", ddp / best)
        record(report.peers, "DDP", "samples/s", ddp)
        record(report.peers, "best split of bare loops", "samples/s", best)
        for place, (quota, rate) in enumerate(zip(unequal.QUOTAS, found["alone"]["rates"], strict=True)):
            record(report.peers, f"bare loop {place}, {quota} cores", "samples/s", rate)
        shares.append(found["ours"]["shares"])
        worst = max(worst, loss_difference(found))
        console.print(
            f"repeat {repeat + 1} of {options.repeats}: {ours / best:.3f}, DDP {ddp / best:.3f}, {shares[-1]}"
        )
    ratio = report.figures["of the best split's rate"]
    report.aims = [Aim.at_least(ratio.name, ratio.median, RATE_AIM)]
    report.equal_losses = worst <= LOSS_TOLERANCE
    report.notes.append(f"the mean losses differ by at most {worst:.1e}; {LOSS_TOLERANCE:g} is allowed")
    report.details |= {"quotas": unequal.QUOTAS, "microbatches": unequal.MICROBATCHES, "shares_at_the_end": shares}
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
