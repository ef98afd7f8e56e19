"""Sharded training's way to hold the model: each worker has a part of every unit, and gathers one unit at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from paceline.errors import ProtocolError
from paceline.messages.from_worker import Checked, Saved
from paceline.messages.to_worker import CheckRound, EvaluateRound, Group, SaveRound, TrainRound
from paceline.plan import Sharding
from paceline.training.batchnorm import BatchNormPool
from paceline.training.data import Source
from paceline.training.evaluate import evaluate, is_stateful, share_of
from paceline.training.mode import Around, Course, Evaluation
from paceline.training.program import Program, assemble
from paceline.training.sharded.checkpoint import Checkpoints, ShardedState
from paceline.training.sharded.copies import Copies
from paceline.training.sharded.deliver import upload_model
from paceline.training.sharded.group import ShardGroup
from paceline.training.sharded.materialise import shard, skeleton
from paceline.training.sharded.trainer import ShardedTrainer

M_MMAP_THRESHOLD = -3  # of mallopt(3)
GIVEN_BACK_FROM_BYTES = 1 << 20


class Shard:
    """A skeleton of the model until the group is known; then this member's part of it, at the setup's checkpoint."""

    def __init__(self, around: Around, fields: dict[str, Any], sharding: Sharding) -> None:
        self._around, self._fields, self._sharding = around, fields, sharding
        self._options = around.setup.submission.options
        unit_bytes = around.setup.submission.facts.unit_bytes or 0
        _give_memory_back(unit_bytes // 2 if sharding.heap_bytes else 0)
        self._model = skeleton(fields["model"], self._options.seed)
        self._joined: tuple[ShardGroup, Program, ShardedTrainer] | None = None

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters() if p.requires_grad)

    def begin(self, course: Course) -> None:
        self._course = course

    # ---- the group ----

    def join(self, group: Group) -> ShardedTrainer:
        """One group is formed an attempt: the shards are cut for it."""
        if self._joined is None:
            self._joined = self._form(group)
        if self._joined[0].key != group.key:
            raise ProtocolError("a sharded attempt was told to form a second group.")
        return self._joined[2]

    def _form(self, group: Group) -> tuple[ShardGroup, Program, ShardedTrainer]:
        around, options = self._around, self._options
        members = ShardGroup(group, around.setup.rank, around.device, around.monitor)
        with around.monitor.doing("building"):
            shard(self._model, members, options.seed, self._sharding)
            program = assemble(self._model, self._fields, around.device, options.precision)
            self._state = ShardedState(program)
            self._checkpoints = Checkpoints(around, members)
            self._copies = Copies(around, members)
            if around.setup.copies is not None:
                self._copies.load(around.setup.copies, self._state)
            elif around.setup.checkpoint is not None:
                self._checkpoints.load(around.setup.checkpoint, self._state)
            members.everyones(None)  # each has read what it needs of the last attempt's copies
            self._copies.keep_only(around.setup.copies if self._sharding.copy_bytes else None)
            members.everyones(None)  # before anyone writes new ones beside them
        for metric in filter(is_stateful, program.metrics.values()):
            with suppress(AttributeError):
                metric.sync_on_compute = False  # torchmetrics would wait for members that keep no metrics
        self._pool = BatchNormPool(self._model)
        trainer = ShardedTrainer(program, self._course, members, self._pool, options.clip_grad_norm, around.monitor)
        return members, program, trainer

    def _members(self) -> tuple[ShardGroup, Program]:
        if self._joined is None:
            raise ProtocolError("an order of a group came before the group.")
        return self._joined[0], self._joined[1]

    def leave(self) -> None:
        """The attempt is over: the master ends this process."""

    def give_up(self, key: str) -> None:
        """As `leave`."""

    def copy_state(self, order: TrainRound) -> bool:
        raise ProtocolError("a sharded worker was told to copy a state.")

    # ---- rounds ----

    def mark_best(self) -> None:
        self._state.mark_best()

    def begin_training(self) -> None:
        self._model.train()

    def end_training(self) -> None:
        self._pool.refuse_other_updates()

    def check(self, order: CheckRound, batches: Iterator[Any]) -> Checked:
        raise ProtocolError("a sharded worker was told to check another's gradients.")

    def evaluate(self, order: EvaluateRound, source: Source) -> Evaluation:
        """On cells of a microbatch's size: a whole batch's activations may not fit."""
        self.join(order.group)
        members, program = self._members()
        cell_size = self._course.grid.cell_size
        share = share_of(program, source, cell_size, members.place, members.world)
        found = evaluate(program, source, cell_size, share, self._around.monitor, lockstep=True)
        self._model.reshard()  # type: ignore[operator]  # only a backward would let go of the root's own
        return found

    # ---- what is stored ----

    def write_checkpoint(self, order: TrainRound) -> None:
        if order.copy_shards is not None:
            self._copies.take(order.from_step, order.copy_shards, self._state)
        if order.checkpoint:
            self._copies.wait()
            where = self._around.copies if self._sharding.copy_bytes else self._around.scratch
            self._checkpoints.write(order.from_step, self._state, where)

    def save(self, order: SaveRound) -> Saved:
        if order.group is None:
            raise ProtocolError("the model of a sharded job takes all members to save.")
        self.join(order.group)
        members, _ = self._members()
        return upload_model(self._state.to_deliver(order.which), order.step, members, self._around)


def _give_memory_back(from_bytes: int) -> None:
    """Return the memory of blocks that are at least so large to the system at once: they leave no holes in the heap.

    Smaller ones, activations above all, keep theirs, as in exact training's workers: it is used again soon.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, max(from_bytes, GIVEN_BACK_FROM_BYTES))
