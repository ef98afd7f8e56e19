"""A cluster in simulated time, for the job machine: workers that do what they are told, or die, or hang.

A model is the number of steps that trained it; so a worker that trains, copies, marks or delivers the wrong state
fails the simulation at once.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from operator import add
from typing import Any

from paceline.grid import Grid
from paceline.master import machine
from paceline.master.commands import (
    Command,
    Commit,
    Discard,
    Enqueue,
    Record,
    RollBack,
    Send,
    SetTimer,
    StartWorkers,
    StopWorkers,
)
from paceline.master.events import (
    Answer,
    AttemptEnded,
    Event,
    Lost,
    NodeDraining,
    Planned,
    Preempted,
    ProbeWanted,
    Recruited,
    ScaleRequested,
)
from paceline.master.job import Job
from paceline.master.states import TERMINAL, ProbePlace, Queued, Running, Waiting
from paceline.messages.from_worker import (
    Beat,
    CheckpointWritten,
    Evaluated,
    FromWorker,
    Pace,
    PeerLost,
    Probed,
    Ready,
    Saved,
    Trained,
    Unloadable,
    WorkerHello,
)
from paceline.messages.message import CheckpointRef
from paceline.messages.to_worker import EvaluateRound, GiveUp, ProbeSetup, SaveRound, Setup, ToWorker, TrainRound
from paceline.plan import Placement
from paceline.shares import split_evenly
from paceline.spec import Keep, Submission
from paceline.stop import Progress, fired, improved

from builders import node, plan_of, profile_of

TRAIN_SAMPLES, VAL_SAMPLES = 18, 10
MOST_EVENTS = 4_000


@dataclass(frozen=True)
class Curves:
    """What training would show, by step: it repeats itself."""

    losses: Sequence[float]
    val_losses: Sequence[float]
    accuracies: Sequence[float]

    def loss(self, step: int) -> float:
        return self.losses[step % len(self.losses)]

    def rows(self, step: int, cell_size: int) -> list[tuple[float, ...]]:
        """One row a cell of the evaluation's grid: samples, and their sums of each value."""
        sizes = [min(cell_size, VAL_SAMPLES - at) for at in range(0, VAL_SAMPLES, cell_size)]
        values = self.val_losses[step % len(self.val_losses)], self.accuracies[step % len(self.accuracies)]
        return [(size, *(size * value for value in values)) for size in sizes]


@dataclass(frozen=True)
class Outcome:
    """What a job must come to, on any cluster."""

    step: int
    reason: str
    history: tuple[dict[str, float], ...]
    delivered: int


def grid_of(submission: Submission) -> Grid:
    o = submission.options
    return Grid(TRAIN_SAMPLES, o.batch_size, o.microbatches, o.drop_last, o.seed)


def expected(submission: Submission, curves: Curves) -> Outcome:
    """The job as one loop on one machine: train a step, evaluate where it is due, stop when the condition says so."""
    options, grid, keep = submission.options, grid_of(submission), Keep.parse(submission.options.keep)
    history: list[dict[str, float]] = []
    loss_sum, samples, best, best_step = 0.0, 0, None, None
    for step in count(1):
        loss_sum += curves.loss(step - 1) * grid.batch_len(step - 1)
        samples += grid.batch_len(step - 1)
        stops = fired(options.stop, Progress(step, grid.steps_per_epoch, 0.0, history))
        if stops or step % (options.eval_every or grid.steps_per_epoch) == 0:
            entry = {
                "step": float(step),
                "epoch": step / grid.steps_per_epoch,
                "samples": float(grid.samples_seen(step)),
            }
            entry["loss"] = loss_sum / samples
            if submission.val_data is not None:
                rows = curves.rows(step, options.batch_size)
                sums = [reduce(add, column, 0.0) for column in zip(*rows, strict=True)]
                entry |= {"val_loss": sums[1] / sums[0], "val_accuracy": sums[2] / sums[0]}
            history.append(entry)
            loss_sum, samples = 0.0, 0
            if keep.metric and improved(entry[keep.metric], best, keep.mode):
                best, best_step = entry[keep.metric], step
            stops = stops or fired(options.stop, Progress(step, grid.steps_per_epoch, 0.0, history))
        if stops:
            reason = " and ".join(map(str, stops)) + f" at step {step}"
            return Outcome(step, reason, tuple(history), best_step or step)
    raise AssertionError("unreachable")


@dataclass
class SimulatedWorker:
    attempt: int
    rank: int
    node: str
    step: int = 0
    best: int | None = None
    alive: bool = True
    hangs: bool = False
    busy: TrainRound | None = None
    torn: list[float] | None = None
    left: set[str] = field(default_factory=set)


class SimulatedCluster:
    """Runs one job. places: how many workers fit at once. workers: of each attempt's plan. probes: before the first.

    kills, hangs: numbers of the orders upon which the worker that gets them dies, or falls silent. killed_at, cut_at:
    times at which some worker dies, or the workers lose each other. asked_at: (time, a number of workers to scale to,
    or None to drain some worker's node). preempted_at: times at which another job wants the places. deadly_step: whoever trains it dies, each time.
    cut_off: no worker ever reaches another. rotten: numbers of the checkpoints written whose bytes do not last.
    """

    def __init__(
        self,
        submission: Submission,
        curves: Curves,
        seed: int = 0,
        places: int = 1,
        workers: int = 1,
        kills: Sequence[int] = (),
        hangs: Sequence[int] = (),
        killed_at: Sequence[float] = (),
        cut_at: Sequence[float] = (),
        asked_at: Sequence[tuple[float, int | None]] = (),
        preempted_at: Sequence[float] = (),
        deadly_step: int | None = None,
        cut_off: bool = False,
        rotten: Sequence[int] = (),
        seconds_per_step: float | None = None,
        probes: int = 0,
    ) -> None:
        self.job = Job(id="job", submission=submission)
        self.curves, self.places, self.planned = curves, places, workers
        self.kills, self.hangs = set(kills), set(hangs)
        self.now = 0.0
        self.records: list[Record] = []
        self.commits: list[Commit] = []
        self.roll_backs: list[int] = []
        self.discarded: set[str] = set()
        self.started: list[tuple[int, int]] = []
        self._random = random.Random(seed)
        self._workers: list[SimulatedWorker] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._orders = count()
        self._nodes = count()
        self._deadly_step, self._cut_off, self._rotten = deadly_step, cut_off, set(rotten)
        self._written = count()
        self._probes = probes
        self._seconds_per_step = seconds_per_step or 10.0 ** self._random.uniform(-2.5, 0)
        self._after(0.0, self._schedule)
        for time in killed_at:
            self._after(time, self._kill_someone)
        for time in cut_at:
            self._after(time, self._cut_connections)
        for time, asked in asked_at:
            self._after(time, lambda asked=asked: self._ask(asked))
        for time in preempted_at:
            self._after(time, lambda: self._feed(Preempted(self.job.attempt, "job-2", "preempted by job-2")))

    def run(self) -> Job:
        """Until the job has ended and its last worker is gone."""
        for _ in range(MOST_EVENTS):
            if isinstance(self.job.state, TERMINAL) and not self._workers:
                return self.job
            assert self._agenda, f"nothing is left to happen; the job is {self.job.state}"
            self.now, _, action = heapq.heappop(self._agenda)
            action()
        left = [worker.rank for worker in self._workers]
        raise AssertionError(f"no end in sight at {self.now:.0f} s: {self.job.state_name}, workers {left}")

    def record_kinds(self) -> list[str]:
        return [record.kind for record in self.records]

    # ---- the controller's part ----

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._number), action))

    def _soon(self, action: Callable[[], None], most: float = 1.0) -> None:
        self._after(self._random.uniform(0.001, most), action)

    def _feed(self, event: Event) -> None:
        self.job, commands = machine.step(self.job, event, self.now)
        for command in commands:
            self._perform(command)

    def _perform(self, command: Command) -> None:
        match command:
            case Enqueue():
                self._after(0.1, self._schedule)
            case StartWorkers(attempt, placements):
                for placement in placements:
                    self._start(attempt, placement)
            case Send(attempt, rank, message):
                for worker in self._of(attempt, {rank}):
                    self._after(0.001, lambda worker=worker: self._deliver(worker, message))
            case StopWorkers(attempt, ranks):
                stopped = self._of(attempt, ranks)
                for worker in stopped:
                    self._kill(worker, "stopped")
                if not self._of(attempt):
                    self._after(0.0, lambda: self._feed(AttemptEnded(attempt)))
            case SetTimer(seconds, event):
                self._after(seconds, lambda: self._feed(event))
            case Commit():
                self.commits.append(command)
            case RollBack(step):
                self.roll_backs.append(step)
                self.commits = [commit for commit in self.commits if commit.from_step < step]
            case Discard(blobs):
                self.discarded.update(blobs)
            case Record():
                self.records.append(command)

    def _of(self, attempt: int, ranks: Any = None) -> list[SimulatedWorker]:
        return [w for w in self._workers if w.attempt == attempt and (ranks is None or w.rank in ranks)]

    def _schedule(self) -> None:
        free = self.places - len(self._workers)
        cells = self.job.submission.options.microbatches
        wanted = self.planned if self.job.wish is None else min(self.job.wish, cells, max(1, free))
        if isinstance(self.job.state, Queued | Waiting) and free >= max(wanted, self._probes):
            plan = plan_of(split_evenly(cells, wanted), most_workers=wanted)
            nodes = tuple(node(placement.node_id) for placement in plan.workers)
            probed = not self._probes or self.job.attempt or self.job.probed is not None
            self._feed(Planned(plan, nodes=nodes) if probed else ProbeWanted(plan, self._places_to_probe()))
        elif isinstance(self.job.state, Running) and self.job.wanted and free > 0:
            name = f"node{next(self._nodes)}"
            place = Placement(rank=0, node_id=name, node_name=name, device="cpu", share=(0, 0))
            self._feed(Recruited(self.job.attempt, place, node(name)))

    def _places_to_probe(self) -> tuple[ProbePlace, ...]:
        placements = plan_of([(0, 1)] * self._probes).workers
        return tuple(ProbePlace(p, f"class {p.rank}", memory=100) for p in placements)

    def _ask(self, asked: int | None) -> None:
        if asked is not None:
            self._feed(ScaleRequested(asked))
        elif self._workers:
            self._feed(NodeDraining(self._random.choice(self._workers).node))

    # ---- the workers' part ----

    def _start(self, attempt: int, placement: Placement) -> None:
        assert (attempt, placement.rank) not in self.started, "a rank is used twice in an attempt"
        self.started.append((attempt, placement.rank))
        assert len(self._workers) < self.places, "more workers than places"
        worker = SimulatedWorker(attempt, placement.rank, placement.node_id)
        self._workers.append(worker)
        self._answer(worker, WorkerHello(address="127.0.0.1"))
        self._after(1.0, lambda: self._beat(worker))

    def _beat(self, worker: SimulatedWorker) -> None:
        if worker.alive and not worker.hangs:
            phase = "exchange" if worker.busy else "idle"
            self._feed(
                Answer(worker.attempt, worker.rank, Beat(step=worker.step, cells=int(self.now), phase=phase, stack=""))
            )
            self._after(1.0, lambda: self._beat(worker))

    def _answer(self, worker: SimulatedWorker, message: FromWorker, seconds: float | None = None) -> None:
        def say() -> None:
            if worker.alive and not worker.hangs:
                self._feed(Answer(worker.attempt, worker.rank, message))

        self._after(self._random.uniform(0.001, 1.0) if seconds is None else seconds, say)

    def _deliver(self, worker: SimulatedWorker, message: ToWorker) -> None:
        if not worker.alive or worker.hangs:
            return
        if isinstance(message, GiveUp):
            if worker.busy is not None and worker.busy.group.key == message.key:
                self._tear(worker, worker.busy)
            return
        number = next(self._orders)
        if number in self.kills:
            return self._kill(worker, "killed")
        if number in self.hangs:
            worker.hangs = True
            return
        match message:
            case Setup():
                self._set_up(worker, message)
            case ProbeSetup():
                measured = Probed(profile=profile_of(hardware_class=message.hardware_class), seconds=1.0)
                self._answer(worker, measured, self._random.uniform(0.1, 90.0))
            case TrainRound():
                self._enter(worker, message)
            case EvaluateRound():
                self._evaluate(worker, message)
            case SaveRound():
                self._save(worker, message)

    def _set_up(self, worker: SimulatedWorker, setup: Setup) -> None:
        if setup.checkpoint is not None:
            assert setup.checkpoint.blob not in self.discarded, "a checkpoint that was thrown away"
            step, best, number = setup.checkpoint.blob.split("/")
            if int(number) in self._rotten:
                return self._answer(worker, Unloadable(step=setup.checkpoint.step, reason="other bytes"))
            worker.step, worker.best = int(step), None if best == "None" else int(best)
            assert worker.step == setup.checkpoint.step
        ready = Ready(
            fingerprint="f", train_samples=TRAIN_SAMPLES, parameters=1,
            store_port=1,
        )  # fmt: skip
        self._answer(worker, ready, self._random.uniform(0.1, 5.0))

    def _evaluate(self, worker: SimulatedWorker, order: EvaluateRound) -> None:
        assert worker.step == order.step, "a worker evaluates another state than the committed one"
        rows = self.curves.rows(order.step, self.job.submission.options.batch_size)
        place, world = order.group.members.index(worker.rank), len(order.group.members)
        first, end = place * len(rows) // world, (place + 1) * len(rows) // world
        self._answer(worker, Evaluated(step=order.step, first_cell=first, rows=tuple(rows[first:end]), seconds=0.1))

    def _save(self, worker: SimulatedWorker, order: SaveRound) -> None:
        assert worker.step == order.step, "a worker saves another state than the committed one"
        model = worker.best if order.which == "best" else worker.step
        assert model is not None, "the best model is asked of a worker that never marked one"
        self._answer(worker, Saved(step=order.step, blob="blob", nbytes=1, digest=f"model after {model}"))

    # ---- a round of steps, together ----

    def _enter(self, worker: SimulatedWorker, order: TrainRound) -> None:
        assert worker.busy is None, "an order before the last one was answered"
        assert order.group.key not in worker.left, "a worker that has left a group can't form it again"
        worker.busy, worker.torn = order, None
        group = [w for w in self._of(worker.attempt, order.group.members) if w.alive]
        alone = self._cut_off and len(order.group.members) > 1
        if alone or len(group) < len(order.group.members):
            return self._break(worker)
        if all(w.busy is not None and w.busy.group.key == order.group.key for w in group):
            self._bring_to_one_state(group, order)
            steps = order.to_step - order.from_step
            deadly = self._deadly_step in range(order.from_step, order.to_step)
            ends = self._kill_group if deadly else self._complete
            self._after(0.001 + steps * self._seconds_per_step, lambda: ends(group, order))

    def _bring_to_one_state(self, group: list[SimulatedWorker], order: TrainRound) -> None:
        """What happens before the first step: copies, the best model's mark, a checkpoint."""
        by_rank = {worker.rank: worker for worker in group}
        for worker in group:
            if worker.rank in order.behind:
                assert order.source is not None
                source = by_rank[order.source]
                worker.step, worker.best = source.step, source.best
            assert worker.step == order.from_step, "a worker trains on another state than the committed one"
        for worker in group if order.mark_best else ():
            worker.best = order.from_step
        if order.checkpoint:
            writer = by_rank[order.group.members[0]]
            ref = CheckpointRef(step=writer.step, blob=f"{writer.step}/{writer.best}/{next(self._written)}", nbytes=1)
            self._answer(writer, CheckpointWritten(checkpoint=ref), self._random.uniform(0.01, 3.0))

    def _complete(self, group: list[SimulatedWorker], order: TrainRound) -> None:
        if any(worker.busy != order or worker.torn is not None for worker in group):
            return  # somebody died meanwhile
        for worker in group:
            self._finish_round(worker, order, order.to_step - order.from_step)

    def _kill_group(self, group: list[SimulatedWorker], order: TrainRound) -> None:
        for worker in group:
            worker.busy = None
            self._kill(worker, "killed by signal 9")

    def _finish_round(self, worker: SimulatedWorker, order: TrainRound, steps: int) -> None:
        worker.step, worker.busy = order.from_step + steps, None
        seconds, busy = steps * self._seconds_per_step, self._random.uniform(0.0, 0.7)
        pace = Pace(
            steps=steps, cells=steps * self._random.randint(0, 3), seconds=seconds, busy_s=busy * seconds,
            waited_s=self._random.uniform(0.0, 1.0 - busy) * seconds,
        )  # fmt: skip
        losses = tuple(self.curves.loss(order.from_step + at) for at in range(steps))
        done = Trained(from_step=order.from_step, step=worker.step, losses=losses, seconds=seconds, pace=pace)
        self._answer(worker, done, 0.001)

    def _break(self, worker: SimulatedWorker, steps: int = 0) -> None:
        """This worker's exchange failed after so many steps; it notices by itself, or when it is told."""
        assert worker.busy is not None
        order = worker.busy
        worker.left.add(order.group.key)
        if steps and steps == order.to_step - order.from_step:
            return self._finish_round(worker, order, steps)
        worker.step = worker.step if steps == 0 else order.from_step + steps
        worker.torn = [self.curves.loss(order.from_step + at) for at in range(steps)]
        self._soon(lambda: self._tear(worker, order), most=4.0)

    def _tear(self, worker: SimulatedWorker, order: TrainRound) -> None:
        if worker.busy is not order or not worker.alive:
            return
        worker.left.add(order.group.key)
        lost = PeerLost(step=worker.step, losses=tuple(worker.torn or ()), reason="connection closed")
        worker.busy, worker.torn = None, None
        self._answer(worker, lost)

    # ---- ends ----

    def _kill_someone(self) -> None:
        alive = [worker for worker in self._workers if worker.alive]
        if alive:
            self._kill(self._random.choice(alive), "killed")

    def _cut_connections(self) -> None:
        for worker in self._workers:
            if worker.alive and worker.busy is not None and worker.torn is None and len(worker.busy.group.members) > 1:
                self._break(worker)

    def _kill(self, worker: SimulatedWorker, reason: str) -> None:
        if not worker.alive:
            return
        worker.alive = False
        order, worker.busy = worker.busy, None
        if order is not None:
            self._tear_group(worker, order)
        self._soon(lambda: self._report(worker, reason))

    def _tear_group(self, dead: SimulatedWorker, order: TrainRound) -> None:
        """The others of its round stop after the same step, or one later, as all-gathers end unevenly."""
        others = [
            w for w in self._of(dead.attempt, order.group.members) if w.busy == order and w.torn is None and w.alive
        ]
        together = len(others) + 1 == len(order.group.members)
        steps = self._random.randint(0, order.to_step - order.from_step) if together else 0
        for worker in others:
            one_more = together and steps < order.to_step - order.from_step and self._random.random() < 0.4
            self._break(worker, steps + one_more)

    def _report(self, worker: SimulatedWorker, reason: str) -> None:
        self._workers.remove(worker)
        self._feed(Lost(worker.attempt, worker.rank, reason))
        if not self._of(worker.attempt):
            self._feed(AttemptEnded(worker.attempt))
        self._after(0.1, self._schedule)
