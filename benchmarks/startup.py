"""From submission to model: ten steps of a small model, beside Ray Train and torchrun doing the same.

    python benchmarks/startup.py [--repeats 5] [--skip NAME]… [--results FOLDER]

Warm: a master (or a Ray) that already runs and has done one job. Cold: a whole `python train.py`. Each contestant runs
alone on the machine; in each repeat all of them run, in another order.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _alone import CONTESTANTS, ContestantFailed, adopt_orphans, python, run_alone
from _harness import RESULTS, Aim, Report, console, record

sys.path.insert(0, str(CONTESTANTS))
import ten_steps
import torch

TIMEOUT_S = 300
WORKERS = (1, 2)
LOSS_TOLERANCE = 1e-5  # summing ten steps' gradients in another order moves the loss by less
WARM_AIMS = {"paceline local": 0.5, "paceline ray": 1.0}
COLD_AIM = 0.5


@dataclass(frozen=True)
class Outcome:
    """One measured way from submission to model. loss: of the delivered model on its data."""

    name: str
    workers: int
    seconds: float
    loss: float


def paceline_warm(engine: str) -> list[Outcome]:
    _, found = run_alone(python("paceline_warm.py", engine), TIMEOUT_S)
    assert found is not None
    if "unavailable" in found:
        raise ContestantFailed(f"not available: {found['unavailable']}")
    return [
        Outcome(f"paceline {engine}, warm", workers, found[str(workers)]["seconds"], found[str(workers)]["loss"])
        for workers in WORKERS
    ]


def ray_train_warm() -> list[Outcome]:
    _, found = run_alone(python("ray_train.py", "1", *map(str, WORKERS)), TIMEOUT_S)
    assert found is not None
    warm = found["fits"][1:]  # the first one warms Ray
    return [Outcome("ray train, warm", fit["workers"], fit["seconds"], fit["loss"]) for fit in warm]


def ray_train_cold() -> list[Outcome]:
    outcomes = []
    for workers in WORKERS:
        seconds, found = run_alone(python("ray_train.py", str(workers)), TIMEOUT_S)
        assert found is not None
        outcomes.append(Outcome("ray train, cold", workers, seconds, found["fits"][0]["loss"]))
    return outcomes


def paceline_cold() -> list[Outcome]:
    return [_script("paceline, cold", w, lambda path, w=w: python("paceline_train.py", str(w), str(w), path))
            for w in WORKERS]  # fmt: skip


def torchrun_cold() -> list[Outcome]:
    return [_script("torchrun, cold", w, lambda path, w=w: _torchrun(w, path)) for w in WORKERS]


def _torchrun(workers: int, path: str) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [
        str(Path(sys.executable).with_name("torchrun")), f"--nproc-per-node={workers}", "--master-addr=127.0.0.1",
        f"--master-port={port}", str(CONTESTANTS / "torchrun_train.py"), str(workers), path,
    ]  # fmt: skip


def _script(name: str, workers: int, command: Callable[[str], list[str]]) -> Outcome:
    """A script whose whole process is the measured time, and which leaves its model in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        seconds, _ = run_alone(command(str(path)), TIMEOUT_S)
        return Outcome(name, workers, seconds, ten_steps.loss_of(torch.load(path), seed=workers))


CONTESTANTS_BY_NAME: dict[str, Callable[[], list[Outcome]]] = {
    "paceline-local": lambda: paceline_warm("local"),
    "paceline-ray": lambda: paceline_warm("ray"),
    "paceline-cold": paceline_cold,
    "torchrun": torchrun_cold,
    "ray-train": ray_train_warm,
    "ray-train-cold": ray_train_cold,
}


def main() -> int:
    options = _options()
    adopt_orphans()
    report = Report("startup", options.repeats)
    outcomes: list[Outcome] = []
    for repeat in range(options.repeats):
        names = [name for name in CONTESTANTS_BY_NAME if name not in options.skip]
        random.Random(repeat).shuffle(names)
        for name in names:
            console.print(f"repeat {repeat + 1} of {options.repeats}: {name}")
            try:
                outcomes += CONTESTANTS_BY_NAME[name]()
            except ContestantFailed as failed:
                report.notes.append(f"{name} failed in repeat {repeat + 1}: {failed}")
    _fill(report, outcomes)
    return report.finish(options.results)


def _fill(report: Report, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        into = report.figures if outcome.name.startswith("paceline") else report.peers
        record(into, f"{outcome.name}, {_workers(outcome.workers)}", "s", outcome.seconds)
    report.aims = _aims(report)
    spread = {w: [o.loss for o in outcomes if o.workers == w] for w in WORKERS}
    report.details["losses"] = {_workers(w): {"min": min(x), "max": max(x)} for w, x in spread.items() if x}
    report.equal_losses = all(max(x) - min(x) <= LOSS_TOLERANCE for x in spread.values() if x)
    report.notes.append(
        f"each contestant's model had the same loss on its data within {LOSS_TOLERANCE:g}: "
        + ", ".join(f"{name} {x['min']:.7f} to {x['max']:.7f}" for name, x in report.details["losses"].items())
    )


def _aims(report: Report) -> list[Aim]:
    aims = []
    for workers in map(_workers, WORKERS):
        for ours, bound in WARM_AIMS.items():
            figure = report.figures.get(f"{ours}, warm, {workers}")
            aims.append(Aim.at_most(f"{ours}, warm, {workers}, in seconds", figure and figure.median, bound))
        cold, torchrun = (
            report.figures.get(f"paceline, cold, {workers}"),
            report.peers.get(f"torchrun, cold, {workers}"),
        )
        ratio = cold.median / torchrun.median if cold and torchrun else None
        aims.append(Aim.at_most(f"paceline, cold, of torchrun's time, {workers}", ratio, COLD_AIM))
    return aims


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", action="append", default=[], choices=list(CONTESTANTS_BY_NAME))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
