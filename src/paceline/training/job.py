"""One worker's part of one attempt: build, train rounds, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paceline.errors import ProtocolError
from paceline.messages.from_worker import (
    Checked,
    Evaluated,
    Pace,
    PeerLost,
    Progressed,
    Ready,
    Saved,
    Suspected,
    Trained,
)
from paceline.messages.message import Message
from paceline.messages.to_worker import CheckRound, EvaluateRound, Group, SaveRound, Setup, TrainRound
from paceline.shards.data import Place
from paceline.shares import Share
from paceline.training.data import CellRequest, fingerprint
from paceline.training.group import LostPeer
from paceline.training.mode import Around, Mode, Trainer
from paceline.training.monitor import Monitor
from paceline.training.opened import open_data
from paceline.training.packages import NodeCache, open_package
from paceline.training.replica import Replica
from paceline.training.sanity import SuspectStep
from paceline.training.seeds import make_deterministic
from paceline.transfer import BlobStore

PROGRESS_EVERY_S = 0.25


class TrainingJob:
    """Built from a Setup; then does what each round asks. folders: scratch, and copies as in `WorkerEnv`.

    `send` may be called from any thread.
    """

    def __init__(
        self,
        setup: Setup,
        cache: NodeCache,
        blobs: BlobStore,
        folders: tuple[Path, Path],
        address: str,
        send: Callable[[Message], None],
        monitor: Monitor,
    ) -> None:
        submission, self._options = setup.submission, setup.submission.options
        options = self._options
        self._rank, self._send, self._monitor = setup.rank, send, monitor
        make_deterministic(options.threads, options.reproducible)
        fields = open_package(submission.program, cache)
        around = Around(setup, torch.device(setup.device), cache, blobs, *folders, send, monitor)
        self._mode = _mode(around, fields)
        if setup.sharding is not None:
            options = options.model_copy(update={"microbatches": setup.sharding.microbatches})
        opened = open_data(submission, options, fields, cache, Place(cache.folder / "shards", monitor.carried))
        self._train, self._val, self.grid = opened.train, opened.val, opened.course.grid
        self._mode.begin(opened.course)
        self._step = setup.from_step  # the model's state is that after so many steps
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        self._trainer: Trainer | None = None
        self._shares: Sequence[Share] = ()
        self._batches: Iterator[Any] | None = None

    def ready(self) -> Ready:
        """What the master compares and plans with."""
        return Ready(
            fingerprint="/".join(fingerprint(source) for source in (self._train, self._val) if source is not None),
            train_samples=len(self._train),
            parameters=self._mode.num_parameters,
            store_port=self._store.port,
        )

    # ---- training ----

    def train(self, order: TrainRound) -> Trained | Suspected | PeerLost:
        """Do the round's steps. Raises what the user's code raises."""
        losses: list[float] = []
        started = time.perf_counter()
        try:
            trainer = self._join(order.group)
            if order.source is not None and self._mode.copy_state(order):
                self._step = order.from_step
            self._before_steps(order)
            pace = self._do_steps(order, trainer, losses)
        except LostPeer as lost:
            return self._lost(lost, tuple(losses))
        except SuspectStep as suspect:
            self._batches = None  # the step's own were read
            return Suspected(
                from_step=order.from_step,
                step=self._step,
                losses=tuple(losses),
                suspects=tuple(order.group.members[place] for place in suspect.places),
                reason=suspect.reason,
                evidence=suspect.evidence,
            )
        return Trained(
            from_step=order.from_step,
            step=self._step,
            losses=tuple(losses),
            seconds=time.perf_counter() - started,
            pace=pace,
        )

    def _before_steps(self, order: TrainRound) -> None:
        if order.mark_best:
            self._mode.mark_best()
        if order.checkpoint or order.copy_shards:
            with self._monitor.doing("checkpoint"):
                self._mode.write_checkpoint(order)

    def _do_steps(self, order: TrainRound, trainer: Trainer, losses: list[float]) -> Pace:
        warm = self._batches is not None
        if self._batches is None:
            self._batches = self._train.stream(self._requests(trainer, trainer.place, order.from_step))
        self._mode.begin_training()
        since = self._monitor.read()
        reporting = self._rank == order.group.members[0]
        started = reported = time.monotonic()
        for step in range(order.from_step, order.to_step):
            losses.append(trainer.step(step, self._batches, trusted=step == order.trusted_step))
            self._step = self._monitor.step = step + 1
            if not warm:
                warm, since = True, self._monitor.read()
            now = time.monotonic()
            if reporting and now - reported > PROGRESS_EVERY_S and step + 1 < order.to_step:
                reported = now
                samples = self.grid.samples_seen(step + 1) - self.grid.samples_seen(order.from_step)
                self._send(Progressed(step=step + 1, loss=losses[-1], samples_per_s=samples / (now - started)))
        self._mode.end_training()
        return since.until(self._monitor.read())

    def check(self, order: CheckRound) -> Checked:
        """Compute again what another member computed of the next step; this one's state stays as it is."""
        trainer = self._join(order.group)
        place = order.group.members.index(order.rank)
        checked = self._mode.check(order, self._train.stream(self._requests(trainer, place, order.step)))
        self._batches = None
        return checked

    def _requests(self, trainer: Trainer, place: int, from_step: int) -> Iterator[CellRequest]:
        """The cells of the member at `place` from `from_step` on, without end; none where it has no share."""
        if not trainer.cells(0, place):
            return  # who reads ahead would look for a first one for ever
        for step in count(from_step):
            epoch, _ = self.grid.locate(step)
            for cell in trainer.cells(step, place):
                yield CellRequest(epoch, self.grid.cell_samples(step, cell))

    # ---- the group ----

    def _join(self, group: Group) -> Trainer:
        """The group's trainer. What was read ahead belongs to a former share, or to a step that was torn."""
        trainer = self._mode.join(group)
        if trainer is not self._trainer or group.shares != self._shares:
            self._trainer, self._shares, self._batches = trainer, group.shares, None
        return trainer

    def _leave(self) -> None:
        self._mode.leave()
        self._trainer, self._batches = None, None

    def give_up(self, key: str) -> None:
        """A member of that group is gone; called from the reading thread."""
        self._mode.give_up(key)

    # ---- evaluation and model ----

    def evaluate(self, order: EvaluateRound) -> Evaluated | PeerLost:
        """Evaluate this worker's share of the validation grid."""
        started = time.monotonic()
        if self._val is None:
            raise ProtocolError("an evaluation was asked for, and there is no validation data.")
        try:
            with self._monitor.doing("evaluation"):
                first, rows, finals = self._mode.evaluate(order, self._val)
        except LostPeer as lost:
            return self._lost(lost)
        return Evaluated(
            step=order.step, first_cell=first, rows=tuple(rows), finals=finals, seconds=time.monotonic() - started
        )

    def save(self, order: SaveRound) -> Saved | PeerLost:
        """Upload the model that is to be delivered."""
        try:
            return self._mode.save(order)
        except LostPeer as lost:
            return self._lost(lost)

    def _lost(self, lost: LostPeer, losses: tuple[float, ...] = ()) -> PeerLost:
        self._leave()
        return PeerLost(step=self._step, losses=losses, reason=str(lost)[:500])


def _mode(around: Around, fields: dict[str, Any]) -> Mode:
    if around.setup.sharding is None:
        return Replica(around, fields)
    from paceline.training.sharded.shard import Shard  # FSDP takes a second to import, and few jobs need it

    return Shard(around, fields, around.setup.sharding)
