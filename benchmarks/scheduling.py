"""A day of many users' jobs in simulated time: the master's policy beside FIFO, backfill alone, and an equal split.

    python benchmarks/scheduling.py [--repeats 10] [--load 0.9] [--results FOLDER]

The policy and the planner are the master's own code; only time, and the jobs' running, are simulated. Each repeat is
another day (`_trace.py`), the same for all contestants. Takes about a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from _harness import RESULTS, Aim, Report, console, record
from _trace import DAY_S, PLACES, TraceJob, day

from paceline.errors import Unplaceable
from paceline.plan import Node, Plan
from paceline.planner.planner import plan_workers
from paceline.planner.queue import Decision, Policy, Preempt, RunningJob, Start, Wait, WaitingJob, charged, decide
from paceline.planner.resources import cores_of, holds_of, take
from paceline.planner.timeline import Fit, Place
from paceline.spec import Facts, Resources, TrainOptions
from paceline.stop import MaxSteps

CORES = 16
LEAVES_S, RESUMES_S = 5.0, 20.0  # a preempted job's checkpoint holds its places; its next start costs it time
LOOK_AGAIN_S = 300.0
OVERDUE_S = 60.0  # what is left of a job that runs longer than predicted
SHORTEST_S = 10.0  # for slowdowns: shorter jobs count as so long
GIB = 2**30

Decide = Callable[
    [Sequence[WaitingJob], Sequence[RunningJob], Sequence[Node], Mapping[str, float], Policy, Place], list[Decision]
]


@dataclass
class Fate:
    """How one job fared. left_s: of its work. waited_s: in the longest of its waits; since: when that began."""

    left_s: float
    since: float
    waited_s: float = 0.0
    ended: float = inf
    preemptions: int = 0


@dataclass
class Held:
    """A running job. ends: when it really does, or has left. predicted: when the scheduler thinks so."""

    job: RunningJob
    since: float
    ends: float
    predicted: float


class Day:
    """One trace on one cluster under one policy."""

    def __init__(self, trace: Sequence[TraceJob], policy: Policy, decide: Decide) -> None:
        self._trace, self._policy, self._decide = {job.id: job for job in trace}, policy, decide
        self._nodes = tuple(_node(number) for number in range(PLACES // CORES))
        self._plans: dict[tuple[int, tuple[int, ...]], Plan | Unplaceable] = {}
        self.fates = {job.id: Fate(job.seconds, job.at) for job in trace}
        self._waiting: list[str] = []
        self._running: dict[str, Held] = {}
        self._usage: dict[str, float] = {}
        self.now = 0.0

    def run(self) -> None:
        """Until the last job has ended."""
        coming = sorted(self._trace.values(), key=lambda job: job.at)
        while coming or self._waiting or self._running:
            moments = [held.ends for held in self._running.values()] + [job.at for job in coming[:1]]
            again = self.now + LOOK_AGAIN_S if self._waiting else inf
            self._pass_to(min([*moments, again]))
            while coming and coming[0].at <= self.now:
                self._waiting.append(coming.pop(0).id)
            self._end_jobs()
            self._look()

    def _pass_to(self, moment: float) -> None:
        cores: dict[str, float] = {}
        for held in self._running.values():
            cores[held.job.user] = cores.get(held.job.user, 0.0) + cores_of(held.job.holds)
        self._usage = charged(self._usage, cores, moment - self.now, self._policy.half_life_s)
        self.now = moment

    def _end_jobs(self) -> None:
        for job_id, held in list(self._running.items()):
            if held.ends <= self.now:
                del self._running[job_id]
                if held.job.leaves:
                    self._waiting.append(job_id)
                else:
                    self.fates[job_id].ended = self.now

    def _look(self) -> None:
        running = [self._seen(held) for held in self._running.values()]
        waiting = [self._as_waiting(job_id) for job_id in self._waiting]
        free = take(self._nodes, [hold for job in running for hold in job.holds])
        for decision in self._decide(waiting, running, free, self._usage, self._policy, self._place):
            match decision:
                case Start():
                    self._start(decision)
                case Preempt(job_id):
                    self._leave(job_id)

    def _seen(self, held: Held) -> RunningJob:
        left_s = max(OVERDUE_S, held.predicted - self.now)
        return replace(held.job, ran_s=self.now - held.since, left_s=left_s)

    def _as_waiting(self, job_id: str) -> WaitingJob:
        job = self._trace[job_id]
        return WaitingJob(job_id, job.user, job.priority, self.now - self.fates[job_id].since)

    def _place(self, job_id: str, nodes: Sequence[Node], most: int | None = None) -> Fit:
        """Jobs differ in their number of places alone, and nodes in their free cores: what was planned is kept."""
        job, fate = self._trace[job_id], self.fates[job_id]
        key = job.places, tuple(node.free_cores for node in nodes)
        if key not in self._plans:
            self._plans[key] = _planned(nodes, _options_of(job))
        found = self._plans[key]
        if isinstance(found, Unplaceable):
            raise found
        return Fit(found, fate.left_s * job.predicted_s / job.seconds)

    def _start(self, start: Start) -> None:
        job, fate = self._trace[start.job], self.fates[start.job]
        self._waiting.remove(start.job)
        fate.waited_s = max(fate.waited_s, self.now - fate.since)
        running = RunningJob(start.job, job.user, job.priority, start.rank, holds_of(start.plan), 0.0)
        error = job.predicted_s / job.seconds
        self._running[start.job] = Held(running, self.now, self.now + fate.left_s, self.now + fate.left_s * error)

    def _leave(self, job_id: str) -> None:
        held, fate = self._running[job_id], self.fates[job_id]
        fate.left_s = held.ends - self.now + RESUMES_S
        fate.since, fate.preemptions = self.now, fate.preemptions + 1
        held.job, held.ends = replace(held.job, leaves=True), self.now + LEAVES_S


def _planned(nodes: Sequence[Node], options: TrainOptions) -> Plan | Unplaceable:
    try:
        return plan_workers(nodes, options, Facts())
    except Unplaceable as refusal:
        return refusal


def _node(number: int) -> Node:
    return Node(
        id=f"n{number}", name=f"n{number}", address="", hardware_class="one", cores=CORES, memory=64 * GIB,
        free_cores=CORES, free_memory=64 * GIB,
    )  # fmt: skip


def _options_of(job: TraceJob) -> TrainOptions:
    resources = Resources(workers=job.places, device="cpu", memory=GIB)
    return TrainOptions(stop=MaxSteps(1), batch_size=job.places, microbatches=job.places, resources=resources)


# ---- contestants ----


def first_come(
    waiting: Sequence[WaitingJob],
    running: Sequence[RunningJob],
    nodes: Sequence[Node],
    usage: Mapping[str, float],
    policy: Policy,
    place: Place,
) -> list[Decision]:
    """In the order in which they came; the first that does not fit holds up all behind it."""
    decisions: list[Decision] = []
    for job in sorted(waiting, key=lambda job: (-job.waited_s, job.id)):
        try:
            plan = place(job.id, nodes).plan
        except Unplaceable as refusal:
            return [*decisions, Wait(job.id, 1, None, refusal.fact)]
        decisions.append(Start(job.id, plan, 0.0, "its turn"))
        nodes = take(nodes, holds_of(plan))
    return decisions


def equal_split(trace: Sequence[TraceJob]) -> dict[str, Fate]:
    """Every job present gets the same number of places, at most what it asked for, and is so much slower.

    An ideal: places are divisible, jobs of any size share them, and changing costs nothing.
    """
    fates = {job.id: Fate(job.seconds, job.at) for job in trace}
    coming, present, now = sorted(trace, key=lambda job: job.at), [], 0.0
    while coming or present:
        rates = _water_levels(present)
        ends = [now + fates[job.id].left_s / rates[job.id] for job in present]
        moment = min([*ends, *(job.at for job in coming[:1])])
        for job in present:
            fates[job.id].left_s -= (moment - now) * rates[job.id]
        now = moment
        for job in [job for job in present if fates[job.id].left_s <= 1e-6]:
            present.remove(job)
            fates[job.id].ended = now
        while coming and coming[0].at <= now:
            present.append(coming.pop(0))
    return fates


def _water_levels(present: Sequence[TraceJob]) -> dict[str, float]:
    """Each job's speed: 1 where it has all the places that it asked for. Max-min fair."""
    rates, left = {}, float(PLACES)
    for done, job in enumerate(sorted(present, key=lambda job: job.places)):
        got = min(job.places, left / (len(present) - done))
        rates[job.id] = got / job.places
        left -= got
    return rates


PACELINE, FIFO, BACKFILL, SPLIT = "paceline", "FIFO", "backfill only", "equal split"
PATIENT = Policy(reserved=1, aging_s=1.0, share_weight=0.0, min_run_s=inf)  # EASY: ranked by waiting alone


def fates_of(contestant: str, trace: Sequence[TraceJob]) -> dict[str, Fate]:
    if contestant == SPLIT:
        return equal_split(trace)
    plain = [replace(job, priority=0) for job in trace]
    today = {
        PACELINE: lambda: Day(trace, Policy(), decide),
        FIFO: lambda: Day(plain, PATIENT, first_come),
        BACKFILL: lambda: Day(plain, PATIENT, decide),
    }[contestant]()
    today.run()
    return today.fates


# ---- figures ----


def _record(report: Report, contestant: str, trace: Sequence[TraceJob], fates: Mapping[str, Fate]) -> None:
    into = report.figures if contestant == PACELINE else report.peers

    def note(name: str, unit: str, value: float) -> None:
        record(into, f"{contestant}: {name}", unit, value)

    took = {job.id: fates[job.id].ended - job.at for job in trace}
    ordered = sorted(took.values())
    note("completion, mean", "h", sum(ordered) / len(ordered) / 3600)
    note("completion, p95", "h", ordered[len(ordered) * 95 // 100] / 3600)
    slowdowns = [max(1.0, took[job.id] / max(job.seconds, SHORTEST_S)) for job in trace]
    note("bounded slowdown, mean", "", sum(slowdowns) / len(slowdowns))
    if contestant != SPLIT:
        note("longest wait", "h", max(fate.waited_s for fate in fates.values()) / 3600)
    urgent = [max(1.0, took[job.id] / max(job.seconds, SHORTEST_S)) for job in trace if job.priority]
    note("bounded slowdown of urgent jobs, mean", "", sum(urgent) / len(urgent))
    if contestant == PACELINE:
        note("preemptions", "", sum(fate.preemptions for fate in fates.values()))
        note("makespan", "h", max(fate.ended for fate in fates.values()) / 3600)


def _aims(report: Report) -> list[Aim]:
    def ratio(name: str, peer: str) -> float:
        return report.figures[f"{PACELINE}: {name}"].median / report.peers[f"{peer}: {name}"].median

    return [
        Aim.at_most("mean completion, of FIFO's", ratio("completion, mean", FIFO), 1.0),
        Aim.at_most("mean completion, of backfill's alone", ratio("completion, mean", BACKFILL), 1.05),
        Aim.at_most("p95 of completion, of FIFO's", ratio("completion, p95", FIFO), 1.0),
        Aim.at_most("longest wait, of FIFO's (nobody starves)", ratio("longest wait", FIFO), 1.0),
        Aim.at_most(
            "urgent jobs' slowdown, of backfill's alone", ratio("bounded slowdown of urgent jobs, mean", BACKFILL), 0.5
        ),
    ]


def main() -> int:
    options = _options()
    report = Report("scheduling", options.repeats)
    report.equal_losses = True
    for repeat in range(options.repeats):
        trace = day(seed=repeat, load=options.load)
        for contestant in (PACELINE, FIFO, BACKFILL, SPLIT):
            fates = fates_of(contestant, trace)
            report.equal_losses &= all(fate.ended < inf for fate in fates.values())
            _record(report, contestant, trace, fates)
        console.print(f"day {repeat + 1} of {options.repeats}: {len(trace)} jobs")
    report.aims = _aims(report)
    report.notes += [
        "in simulated time, which the load of the machine does not change",
        "equal losses: every contestant ended every job of every day",
        "equal split is an ideal: divisible places, no gangs, no cost of changing",
    ]
    report.details |= {"places": PLACES, "nodes": PLACES // CORES, "load": options.load, "day_s": DAY_S}
    return report.finish(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="days")
    parser.add_argument("--load", type=float, default=0.9, help="work that is submitted, of what the cluster can do")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where to write the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
