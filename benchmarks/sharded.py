"""A sharded job beside a hand-written FSDP2 script under torchrun: samples/s.

    python benchmarks/sharded.py [--repeats 5] [--workers 2] [--results FOLDER]

Same model, initial values, data, order, batch, threads, clipping and interface; one pass a worker and step. A ratio is
that of two runs of the same repeat.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _alone import CONTESTANTS, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

sys.path.insert(0, str(CONTESTANTS))
import sharding

TIMEOUT_S = 600
LOSS_TOLERANCE = 1e-3  # relative, of the mean over all steps
RATE_AIM = 0.97


def main() -> int:
    options = _options()
    adopt_orphans()
    report, worst = Report("sharded", options.repeats), 0.0
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.workers}"]
    commands = {
        "ours": python("paceline_sharded.py", str(options.steps), str(options.workers)),
        "FSDP2": [sys.executable, *launch, str(CONTESTANTS / "fsdp_sharded.py"), str(options.steps)],
    }
    for repeat in range(options.repeats):
        order = sorted(commands, reverse=bool(repeat % 2))
        found = {name: run_alone(commands[name], TIMEOUT_S)[1] or {} for name in order}
        rates = {name: float(run["samples_per_s"]) for name, run in found.items()}
        record(report.figures, "of FSDP2's rate", "ratio", rates["ours"] / rates["FSDP2"])
        record(report.figures, "sharded", "samples/s", rates["ours"])
        record(report.peers, "FSDP2 under torchrun", "samples/s", rates["FSDP2"])
        worst = max(worst, abs(found["ours"]["mean_loss"] / found["FSDP2"]["mean_loss"] - 1))
        console.print(f"repeat {repeat + 1} of {options.repeats}: {rates['ours'] / rates['FSDP2']:.3f}")
    report.aims.append(Aim.at_least("of FSDP2's rate", report.figures["of FSDP2's rate"].median, RATE_AIM))
    report.equal_losses = worst <= LOSS_TOLERANCE
    report.notes.append(f"mean loss over all steps differs by at most {worst:.1e}; {LOSS_TOLERANCE:g} is allowed")
    report.details["workers"] = options.workers
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=sharding.STEPS, help="of a run, with the warm-up")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
