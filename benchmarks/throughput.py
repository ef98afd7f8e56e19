"""Exact training on 1, 2 and 4 workers beside DDP under torchrun and Ray Train: samples/s, and bytes at the interface.

    python benchmarks/throughput.py [--repeats 5] [--workers 1 2 4] [--workload cnn] [--results FOLDER]

Same model, data, batch, threads and interface. The peers take each rank's part of a batch in one pass; Paceline cuts it
into as many microbatches as there are workers, and in other runs into eight, so that the grid's cost shows. A ratio is
that of two runs of the same repeat. Bytes are those of each step, in short runs of their own, once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _alone import CONTESTANTS, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

sys.path.insert(0, str(CONTESTANTS))
import steady

TIMEOUT_S = 300
LOSS_TOLERANCE = 1e-2  # relative, of the mean over all steps: batches are cut differently and summed in other orders
RATE_AIMS = {2: 1.0, 4: 0.9}
BYTES_WORKERS, BYTES_STEPS = (2, 3, 4, 5, 8), 50
EQUAL_BYTES_AIM, OTHER_BYTES_AIM = 1.05, 1.4  # where the shares can be nodes of the summation tree; elsewhere
UNEQUAL_WORKERS, UNEQUAL_MICROBATCHES = 4, 16

Found = dict[str, dict[str, Any]]


def ours(workload: str, steps: int, workers: int, microbatches: int, *more: str) -> list[str]:
    numbers = {"--workers": workers, "--microbatches": microbatches, "--steps": steps}
    options = [part for name, value in numbers.items() for part in (name, str(value))]
    return python("paceline_steady.py", workload, *options, *more)


def torchrun(workload: str, steps: int, workers: int) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [sys.executable, *launch, str(CONTESTANTS / "ddp_steady.py"), workload, str(steps)]


def run_all(commands: Mapping[str, list[str]], repeat: int) -> Found:
    """Every contestant once, beginning with another one in each repeat."""
    names = list(commands)
    first = repeat % len(names)
    return {name: run_alone(commands[name], TIMEOUT_S)[1] or {} for name in names[first:] + names[:first]}


def run_for_rates(workload: str, steps: int, workers: int, repeat: int) -> Found:
    commands = {
        "ours": ours(workload, steps, workers, workers),
        "ours, grid of 8": ours(workload, steps, workers, steady.MICROBATCHES),
        "DDP": torchrun(workload, steps, workers),
        "Ray Train": python("ray_steady.py", workload, str(steps), str(workers)),
    }
    return run_all(commands, repeat)


def record_rates(report: Report, what: str, found: Found) -> None:
    rates = {name: float(run["samples_per_s"]) for name, run in found.items()}
    for peer in ("DDP", "Ray Train"):
        record(report.figures, f"{what}, of {peer}'s rate", "ratio", rates["ours"] / rates[peer])
        record(report.peers, f"{what}, {peer}", "samples/s", rates[peer])
    record(report.figures, f"{what}, grid of 8, of DDP's rate", "ratio", rates["ours, grid of 8"] / rates["DDP"])
    record(report.figures, what, "samples/s", rates["ours"])
    record(report.figures, f"{what}, grid of 8", "samples/s", rates["ours, grid of 8"])


def run_for_bytes(workload: str) -> dict[str, Found]:
    """Ours and DDP's on each number of workers, in a grid of eight; and with one worker of four that is quicker."""
    equal = {
        f"{workers} workers": run_all(
            {
                "ours": ours(workload, BYTES_STEPS, workers, steady.MICROBATCHES),
                "DDP": torchrun(workload, BYTES_STEPS, workers),
            },
            repeat=0,
        )
        for workers in BYTES_WORKERS
    }
    unequal = ours(workload, BYTES_STEPS, UNEQUAL_WORKERS, UNEQUAL_MICROBATCHES, "--unequal")
    as_equal = equal[f"{UNEQUAL_WORKERS} workers"]["DDP"]
    return {**equal, f"{UNEQUAL_WORKERS} unequal workers": {**run_all({"ours": unequal}, 0), "DDP": as_equal}}


def record_bytes(report: Report, workload: str, runs: Mapping[str, Found]) -> None:
    for what, found in runs.items():
        sent = {name: float(run["bytes_per_step"]) for name, run in found.items()}
        name = f"{workload}, {what}, of DDP's bytes"
        record(report.figures, name, "ratio", sent["ours"] / sent["DDP"])
        record(report.figures, f"{workload}, {what}, bytes", "bytes/step", sent["ours"])
        record(report.peers, f"{workload}, {what}, DDP, bytes", "bytes/step", sent["DDP"])
        aligned = what in ("2 workers", "4 workers", "8 workers")
        aim = EQUAL_BYTES_AIM if aligned else OTHER_BYTES_AIM
        report.aims.append(Aim.at_most(name, report.figures[name].median, aim))
    report.details["microbatches_of_each_worker"] = {what: found["ours"]["shares"] for what, found in runs.items()}


def loss_difference(found: Found) -> float:
    """The largest relative one to DDP's."""
    return max(abs(float(run["mean_loss"] / found["DDP"]["mean_loss"]) - 1) for run in found.values())


def main() -> int:
    options = _options()
    adopt_orphans()
    report, started, all_found = Report("throughput", options.repeats), time.monotonic(), []
    for repeat in range(options.repeats):
        for workers in options.workers:
            what = f"{options.workload}, {workers} worker{'s' if workers > 1 else ''}"
            found = run_for_rates(options.workload, options.steps, workers, repeat)
            record_rates(report, what, found)
            all_found.append(found)
            rate = report.figures[f"{what}, of DDP's rate"]
            console.print(f"repeat {repeat + 1} of {options.repeats}: {what} {rate.runs[-1]:.3f}")
            if repeat == options.repeats - 1 and workers in RATE_AIMS:
                report.aims.append(Aim.at_least(rate.name, rate.median, RATE_AIMS[workers]))
    sent = run_for_bytes(options.workload)
    record_bytes(report, options.workload, sent)
    worst = max(loss_difference(found) for found in [*all_found, *sent.values()])
    report.equal_losses = worst <= LOSS_TOLERANCE
    report.notes.append(f"mean loss over all steps differs by at most {worst:.1e}; {LOSS_TOLERANCE:g} is allowed")
    report.details["seconds"] = round(time.monotonic() - started)
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workload", default="cnn", choices=steady.WORKLOADS)
    parser.add_argument("--steps", type=int, default=80, help="of a run for its rate, with the warm-up")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
