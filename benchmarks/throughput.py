"""Exact training on 1, 2 and 4 workers beside ordinary DDP under torchrun: samples/s, and bytes at the interface.

    python benchmarks/throughput.py [--repeats 5] [--workers 2 4] [--workload cnn] [--results FOLDER]

Same model, data, batch, threads and interface; DDP takes each rank's part in one pass, Paceline in microbatches. A
repeat's two runs follow each other, and their ratio is what counts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _alone import CONTESTANTS, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

TIMEOUT_S = 300
LOSS_TOLERANCE = 1e-2  # relative, of the mean over all steps: batches are cut differently and summed in other orders
RATE_AIMS = {2: 1.0, 4: 0.9}
BYTES_AIM = 1.05


def torchrun(workload: str, workers: int) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [sys.executable, *launch, str(CONTESTANTS / "ddp_steady.py"), workload]


def run_pair(workload: str, workers: int, ours_first: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    commands = {"ours": python("paceline_steady.py", workload, str(workers)), "ddp": torchrun(workload, workers)}
    found = {name: run_alone(commands[name], TIMEOUT_S)[1] or {} for name in list(commands)[:: 1 if ours_first else -1]}
    return found["ours"], found["ddp"]


def main() -> int:
    options = _options()
    adopt_orphans()
    report = Report("throughput", options.repeats)
    worst = 0.0
    for repeat in range(options.repeats):
        for workers in options.workers:
            ours, ddp = run_pair(options.workload, workers, ours_first=bool(repeat % 2))
            name = f"{options.workload}, {workers} workers"
            record(report.figures, f"{name}, of DDP's rate", "ratio", ours["samples_per_s"] / ddp["samples_per_s"])
            record(report.figures, f"{name}, of DDP's bytes", "ratio", ours["bytes_per_step"] / ddp["bytes_per_step"])
            record(report.figures, name, "samples/s", ours["samples_per_s"])
            record(report.peers, f"{name}, DDP", "samples/s", ddp["samples_per_s"])
            worst = max(worst, abs(ours["mean_loss"] / ddp["mean_loss"] - 1))
            rate = ours["samples_per_s"] / ddp["samples_per_s"]
            console.print(f"repeat {repeat + 1} of {options.repeats}: {name} {rate:.3f}")
    for workers in options.workers:
        name = f"{options.workload}, {workers} workers"
        rates, sent = report.figures[f"{name}, of DDP's rate"], report.figures[f"{name}, of DDP's bytes"]
        report.aims.append(Aim.at_least(rates.name, rates.median, RATE_AIMS.get(workers, 0.9)))
        report.aims.append(Aim.at_most(sent.name, sent.median, BYTES_AIM))
    report.equal_losses = worst <= LOSS_TOLERANCE
    report.notes.append(f"mean loss over all steps differs by at most {worst:.1e}; {LOSS_TOLERANCE:g} is allowed")
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--workload", default="cnn")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
