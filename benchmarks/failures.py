"""Training while workers are killed: Paceline beside torchrun, Ray Train and torchft, one kill every 60 s and 15 s.

    python benchmarks/failures.py [--repeats 1] [--every 60 15] [--kills N] [--skip NAME]… [--results FOLDER]

Goodput is a contestant's committed samples/s over its own without kills. The kills come at the same moments to all.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _alone import CONTESTANTS, ContestantFailed, adopt_orphans, python
from _faults import Phase, Schedule, Turn, take_turn
from _harness import RESULTS, Aim, Report, console, record
from _steplog import loss_gap

LOSS_TOLERANCE = 1e-2  # relative, of the mean over the common steps: batches are cut and summed in other ways
GOODPUT_AIMS = {60.0: 0.97, 15.0: 0.92}
NEXT_STEP_AIM_S = 1.0
REDONE_AIM = 1
SHORTEST_S = 90.0  # of a phase, and three kills at least
RESTARTS = 1_000_000


def torchrun(folder: str, every: int) -> list[str]:
    """Each restart gets a store of its own: in the shared one, torch 2.13's workers find the addresses of dead ones."""
    return [
        "env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nnodes=1", "--nproc-per-node=2",
        f"--max-restarts={RESTARTS}", str(CONTESTANTS / "torchrun_faulty.py"), folder, str(every),
    ]  # fmt: skip


COMMANDS: dict[str, Callable[[str, int], list[str]]] = {
    "paceline": lambda folder, every: python("paceline_faulty.py", folder, str(every)),
    "torchrun": torchrun,
    "ray train": lambda folder, every: python("ray_faulty.py", folder, str(every)),
    "torchft": lambda folder, every: python("torchft_faulty.py", folder, str(every)),
}


def unavailable(name: str) -> str | None:
    """Why a contestant can't run here; None where it can."""
    if name != "torchft":
        return None
    tried = subprocess.run([sys.executable, "-c", "import torchft"], capture_output=True, text=True)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else None


def main() -> int:
    options = _options()
    adopt_orphans()
    report = Report("failures", options.repeats)
    counts = [options.kills or max(3, math.ceil(SHORTEST_S / every)) for every in options.every]
    gaps: list[float | None] = []
    for repeat in range(options.repeats):
        schedule = Schedule.random(repeat, options.fault_free, options.every, counts)
        turns = {name: turn for name in _order(options, repeat) if (turn := _turn(report, name, schedule, options))}
        for name, turn in turns.items():
            _fill(report, name, turn)
        gaps += _loss_gaps(turns)
    report.aims = _aims(report, options.every)
    report.equal_losses = bool(gaps) and all(gap is not None and gap <= LOSS_TOLERANCE for gap in gaps)
    report.notes += _notes(gaps, options)
    return report.finish(options.results)


def _loss_gaps(turns: dict[str, Turn]) -> list[float | None]:
    """Between all of them before the first kill, and to the end between those whose batches stay whole."""
    same = [turn.committed for name, turn in turns.items() if name != "torchft"]
    before = loss_gap([turn.committed for turn in turns.values()], [turn.phases[0].end for turn in turns.values()])
    return [before, loss_gap(same, [math.inf] * len(same))] if same else [before]


def _order(options: argparse.Namespace, repeat: int) -> list[str]:
    names = [name for name in COMMANDS if name not in options.skip]
    random.Random(repeat).shuffle(names)
    return names


def _turn(report: Report, name: str, schedule: Schedule, options: argparse.Namespace) -> Turn | None:
    reason = unavailable(name)
    if reason is None:
        console.print(f"{name}: {schedule.fault_free_s:g} s without kills, then {schedule.kills}")
        try:
            return take_turn(lambda folder: COMMANDS[name](folder, options.checkpoint_every), schedule, seed=0)
        except ContestantFailed as failed:
            reason = f"failed: {failed}"
    else:
        reason = f"not available: {reason}"
    report.notes.append(f"{name} {reason}")
    console.print(report.notes[-1])
    return None


def _fill(report: Report, name: str, turn: Turn) -> None:
    into = report.figures if name == "paceline" else report.peers
    fault_free = turn.rate(turn.phases[0])
    record(into, f"{name}, without kills", "samples/s", fault_free)
    for phase in turn.phases[1:]:
        title = f"{name}, a kill every {phase.every_s:g} s"
        record(into, f"{title}, goodput", "ratio", turn.rate(phase) / fault_free)
        for seconds in turn.recoveries(phase):
            record(into, f"{title}, to the next step", "s", seconds)
        for steps in turn.redone(phase):
            record(into, f"{title}, redone", "steps", steps)
        report.details.setdefault(title, []).extend(_kill_by_kill(turn, phase))
        if phase.spared:
            report.notes.append(f"{title}: {phase.spared} kills met no living worker, and were left out")


def _kill_by_kill(turn: Turn, phase: Phase) -> list[dict[str, Any]]:
    """Seconds from each kill: to a worker's next step, new or not; to the master's word of the loss and of a joiner."""
    found = []
    for kill in phase.kills:
        entry = {"step_done_s": min(step.at for step in turn.computed if step.started >= kill) - kill}
        for kind in ("worker_lost", "worker_joined"):
            moments = [event["at"] for event in turn.events if event["kind"] == kind and event["at"] >= kill]
            entry |= {f"{kind}_s": moments[0] - kill} if moments else {}
        found.append(entry)
    return found


def _aims(report: Report, every_s: list[float]) -> list[Aim]:
    aims = []
    for every in every_s:
        title = f"paceline, a kill every {every:g} s"
        goodput, seconds, redone = (
            report.figures.get(f"{title}, {what}") for what in ("goodput", "to the next step", "redone")
        )
        median_s = seconds and seconds.median
        if every in GOODPUT_AIMS:
            aims.append(Aim.at_least(f"{title}, goodput", goodput and goodput.median, GOODPUT_AIMS[every]))
        aims.append(Aim.at_most(f"{title}, median seconds to the next step", median_s, NEXT_STEP_AIM_S))
        aims.append(Aim.at_most(f"{title}, steps redone after any kill", redone and max(redone.runs), REDONE_AIM))
    return aims


def _notes(gaps: list[float | None], options: argparse.Namespace) -> list[str]:
    shown = " and ".join("no common step" if gap is None else f"{gap:.1e}" for gap in gaps)
    return [
        f"a checkpoint every {options.checkpoint_every} steps, in all contestants alike",
        f"mean losses differ by {shown} (all, before the first kill; all but torchft, to the end); "
        f"{LOSS_TOLERANCE:g} is allowed",
        "torchft goes on with half a batch while a worker is away: its samples are counted, its model is another",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--every", type=float, nargs="+", default=[60.0, 15.0], metavar="S", help="seconds per kill")
    parser.add_argument("--kills", type=int, help="for each interval; otherwise for 90 s, and three at least")
    parser.add_argument("--fault-free", type=float, default=60.0, metavar="S", help="seconds without kills before")
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--skip", action="append", default=[], choices=list(COMMANDS))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
