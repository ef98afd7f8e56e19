"""The probe of a job: what it costs on this node, measured by the very steps that training takes.

It runs in a worker that is thrown away after, within a memory limit: fake tensors first, where the job might not fit,
then whole steps of the grid, then such with a checkpoint's copies, then microbatches of a half and a quarter. Nothing
of it reaches the job's result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, pairwise
from statistics import mean
from typing import Any

import torch

from paceline.errors import Unplaceable
from paceline.grid import Grid
from paceline.measured import CellTime, Profile, rough_bytes
from paceline.messages.from_worker import Probed
from paceline.messages.to_worker import Group, ProbeSetup
from paceline.shards.data import Place
from paceline.spec import Keep
from paceline.training.batchnorm import BatchNormPool
from paceline.training.checkpoint import Snapshot, model_tensors
from paceline.training.data import CellRequest, to_device
from paceline.training.evaluate import eval_cells, evaluate, is_stateful, share_of
from paceline.training.exact import ExactTrainer
from paceline.training.footprint import Footprint, fake_footprint, footprint, kept, live_sums
from paceline.training.group import WorkerGroup
from paceline.training.memory import MemoryLimit, asked_for, device_full, out_of_memory
from paceline.training.mode import Course
from paceline.training.monitor import Monitor
from paceline.training.opened import open_data
from paceline.training.packages import NodeCache, open_package
from paceline.training.program import build
from paceline.training.sanity import Sanity, SuspectStep
from paceline.training.seeds import make_deterministic

FULL_S, COPIED_S, PART_S = 0.6, 0.9, 0.15  # spent on whole steps of the grid, with copies, and on each smaller size
MOST_STEP_S = 2.0  # of a step that is timed whole; of a longer one, as many microbatches as fit
COPIED_STEPS = 3  # at least, with copies: the heap grows by passes, not by seconds
SMALLEST = 2  # samples: batch-norm can't train on one
DOUBT = 0.25  # of the limit: what the spec's facts put below it runs without fake tensors first


class Stopwatch(Monitor):
    """A monitor that notes when each microbatch was done."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        super().__init__()

    @property
    def cells(self) -> int:
        return len(self.marks)

    @cells.setter
    def cells(self, number: int) -> None:
        if number > len(self.marks):
            self.marks.append(time.perf_counter())


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: of each microbatch, reading and summing included, and of what comes after the last."""

    cells: tuple[float, ...]
    update: float


def probe(setup: ProbeSetup, cache: NodeCache, send: Callable[[Probed], None], leave: Callable[[], None]) -> Probed:
    """Measure the job. Raises what the user's code raises, and Unplaceable where its device's memory is too small.

    send, leave: the last word of a worker that has taken more memory than it may, and its end; called in a thread.
    """
    started = time.perf_counter()

    def too_large(needs: int) -> Probed:
        return Probed(profile=_without_times(setup, needs), seconds=time.perf_counter() - started)

    def on_excess(growth: int) -> None:
        send(too_large(growth))
        leave()

    mapped = sum(package.nbytes for package in setup.submission.packages)
    with MemoryLimit(setup.memory, mapped, on_excess) as memory:
        try:
            measured = _Measurement(setup, cache, memory).profile()
        except Exception as error:
            if device_full(error):
                raise _device_too_small(setup) from error
            if not out_of_memory(error):
                raise
            measured = max(setup.memory + 1, memory.sample() + asked_for(error))
    if isinstance(measured, int):
        return too_large(measured)
    return Probed(profile=measured, seconds=time.perf_counter() - started)


class _Measurement:
    """One run of the probe, on one device."""

    def __init__(self, setup: ProbeSetup, cache: NodeCache, memory: MemoryLimit) -> None:
        self._setup, self._cache, self._memory = setup, cache, memory
        self._options = setup.submission.options
        self._device = torch.device(setup.device)
        self._watch = Stopwatch()
        self._snapshot = Snapshot()

    def profile(self) -> Profile | int:
        """The profile; or the bytes that the job needs, where fake tensors tell that they are more than the limit."""
        started = time.perf_counter()
        self._open()
        built_s = time.perf_counter() - started
        batch = self._first_batch()
        if self._in_doubt():
            faked = fake_footprint(self._fields, batch, self._options)
            needs = faked.growth(self._grid.num_cells(0), self._keeps_best) if faked else 0
            if needs > self._memory.limit:
                return needs
        started = time.perf_counter()
        self._program = build(self._fields, self._options.seed, self._device, self._options.precision)
        built_s += time.perf_counter() - started
        self._pool = BatchNormPool(self._program.model)
        steps, timed_cells = self._whole_steps()
        took = self._footprint(to_device(batch, self._device))
        self._as_in_a_checkpoint(timed_cells)
        self._most = self._memory.most  # without what comes now: the job has no other sizes
        cells = [self._smaller(samples) for samples in self._smaller_sizes(_cell_s(steps))]
        full = CellTime(samples=self._grid.cell_size, seconds=_cell_s(steps))
        return self._as_profile((*filter(None, cells), full), steps, took, timed_cells, built_s)

    @property
    def _keeps_best(self) -> bool:
        return Keep.parse(self._options.keep).metric is not None

    def _open(self) -> None:
        submission, options = self._setup.submission, self._options
        make_deterministic(options.threads, options.reproducible)
        self._fields = open_package(submission.program, self._cache)
        opened = open_data(submission, options, self._fields, self._cache, Place(self._cache.folder / "shards"))
        self._train, self._val = opened.train, opened.val
        self._grid, self._total_samples = opened.course.grid, opened.course.total_samples

    def _first_batch(self) -> Any:
        return next(self._train.stream([CellRequest(0, self._grid.cell_samples(0, 0))]))

    def _in_doubt(self) -> bool:
        """Whether the job might not fit, as far as the spec's facts tell."""
        facts = self._setup.submission.facts
        unseen = facts.parameter_bytes is None or facts.flop_per_sample is None
        return unseen or rough_bytes(self._options, facts) > DOUBT * self._memory.limit

    # ---- times ----

    def _whole_steps(self) -> tuple[list[StepTime], int]:
        """(steps of the grid; their microbatches). A checkpoint's copy is there from the first one on.

        For the heap goes on growing for some ten steps after it.
        """
        first = self._one_step(1)
        self._snapshot.take(self._program.model, self._program.optimizer, best=None)
        cells = min(self._grid.num_cells(0), max(1, int(MOST_STEP_S / sum(first.cells))))
        return self._steps(self._grid.cell_size, cells, FULL_S), cells

    def _smaller_sizes(self, full_s: float) -> list[int]:
        """Ascending; none where the full one took long."""
        size = self._grid.cell_size
        sizes = {size // 4, size // 2} if full_s < MOST_STEP_S / 4 else set()
        return sorted(samples for samples in sizes if SMALLEST <= samples < size)

    def _smaller(self, samples: int) -> CellTime | None:
        """None where the user's code, which never meets this size, can't take it."""
        try:
            steps = self._steps(samples, min(2, self._grid.num_cells(0)), PART_S)
        except Exception as error:  # noqa: BLE001 - of no size that the job has
            print(f"paceline: microbatches of {samples} samples are not measured: {error!r}")  # noqa: T201 - to the log
            return None
        return CellTime(samples=samples, seconds=_cell_s(steps))

    def _one_step(self, cells: int) -> StepTime:
        return next(self._stepping(self._grid.cell_size, cells))

    def _steps(self, samples: int, cells: int, seconds: float) -> list[StepTime]:
        """Steps of so many microbatches until the time is up, without the first: that one waits for readers."""
        steps = self._stepping(samples, cells)
        next(steps)
        until = time.perf_counter() + seconds
        done = [next(steps)]
        while time.perf_counter() < until:
            done.append(next(steps))
        return done

    def _stepping(self, samples: int, cells: int) -> Iterator[StepTime]:
        batch_size = min(samples * cells, self._options.batch_size)
        # whole batches alone: a short job may never come to an epoch's last, smaller one
        grid = replace(self._grid, batch_size=batch_size, microbatches=cells, drop_last=True)
        share = (0, grid.num_cells(0))
        alone = Group(key="", host="", port=0, members=(0,), shares=(share,))
        group = WorkerGroup(alone, 0, self._device, self._watch, threading.Event())
        trainer = ExactTrainer(
            self._program,
            Course(grid, self._total_samples),
            group,
            self._pool,
            self._options.clip_grad_norm,
            self._watch,
            Sanity(),
        )
        batches = self._train.stream(_requests(grid))
        self._program.model.train()
        for step in count():
            yield self._step(trainer, step, batches)
            self._memory.sample()

    def _step(self, trainer: ExactTrainer, step: int, batches: Iterator[Any]) -> StepTime:
        started, before = time.perf_counter(), self._watch.cells
        try:
            trainer.step(step, batches, trusted=True)
        except SuspectStep:  # training tells of it, with all that belongs to it; the time was taken all the same
            self._program.optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        marks = [started, *self._watch.marks[before:]]
        cells = tuple(after - at for at, after in pairwise(marks))
        return StepTime(cells, time.perf_counter() - marks[-1])

    # ---- memory ----

    def _footprint(self, batch: Any) -> Footprint:
        try:
            return footprint(self._program, batch)
        except Exception as error:
            if out_of_memory(error) or device_full(error):
                raise
            print(f"paceline: the model's activations can't be counted: {error!r}")  # noqa: T201 - it trains all the same
            return kept(self._program, activations=0, recomputed=0)

    def _as_in_a_checkpoint(self, cells: int) -> None:
        """Take what training takes beside its steps: an evaluation, the best model, a checkpoint that is written."""
        self._pool.refuse_other_updates()
        plain = not any(is_stateful(metric) for metric in self._program.metrics.values())
        if self._val is not None and plain:  # stateful metrics see all validation data at once
            size = self._options.batch_size
            first = share_of(self._program, self._val, size, 0, eval_cells(len(self._val), size))
            evaluate(self._program, self._val, size, first, self._watch)
        best = model_tensors(self._program.model) if self._keeps_best else None
        steps = self._stepping(self._grid.cell_size, cells)
        until = time.perf_counter() + COPIED_S
        for step in count(1):
            self._snapshot.take(self._program.model, self._program.optimizer, best)
            next(steps)
            if step >= COPIED_STEPS and time.perf_counter() > until:
                break

    def _as_profile(
        self, cells: tuple[CellTime, ...], steps: list[StepTime], took: Footprint, timed_cells: int, built_s: float
    ) -> Profile:
        sums = live_sums(self._grid.num_cells(0)) - live_sums(timed_cells)
        return Profile(
            hardware_class=self._setup.hardware_class,
            device=self._device.type,
            cells=cells,
            cell_samples=self._grid.cell_size,
            update_s=mean(step.update for step in steps),
            state_bytes=took.state,
            activation_bytes=took.activations,
            recomputed_bytes=took.recomputed,
            worker_bytes=self._most + sums * took.gradients,
            exchange_bytes=took.gradients,
            build_s=built_s,
            at=time.time(),
        )


def _cell_s(steps: list[StepTime]) -> float:
    """The mean: where a quota stops the worker for some milliseconds, it does so in few of the microbatches."""
    return mean(seconds for step in steps for seconds in step.cells)


def _requests(grid: Grid) -> Iterator[CellRequest]:
    """The cells of all steps, without end."""
    for step in count():
        epoch, _ = grid.locate(step)
        for cell in range(grid.num_cells(step)):
            yield CellRequest(epoch, grid.cell_samples(step, cell))


def _without_times(setup: ProbeSetup, needs: int) -> Profile:
    options = setup.submission.options
    return Profile(
        hardware_class=setup.hardware_class,
        device=torch.device(setup.device).type,
        cells=(),
        cell_samples=-(-options.batch_size // options.microbatches),
        update_s=0.0,
        state_bytes=0,
        activation_bytes=0,
        worker_bytes=needs,
        exchange_bytes=0,
        build_s=0.0,
        at=time.time(),
    )


def _device_too_small(setup: ProbeSetup) -> Unplaceable:
    options, total = setup.submission.options, torch.cuda.get_device_properties(0).total_memory
    return Unplaceable(
        f"a step with microbatches of {-(-options.batch_size // options.microbatches)} samples does not fit into the "
        f"{total / 2**30:.1f} GiB of {setup.device}.",
        "Lower batch_size or raise microbatches, or use device='cpu'.",
    )
