"""What a worker's rounds ask of the way in which it holds the model: a copy of its own, or a shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from paceline.errors import Corrupt, DiskFull, NotFound
from paceline.grid import Grid
from paceline.messages.from_worker import Checked, Saved, Warned
from paceline.messages.message import CheckpointRef, Message
from paceline.messages.to_worker import CheckRound, EvaluateRound, Group, SaveRound, Setup, TrainRound
from paceline.training.data import Source
from paceline.training.monitor import Monitor
from paceline.training.packages import NodeCache
from paceline.transfer import BlobStore

RETRY_S = 5.0

Evaluation = tuple[int, list[tuple[float, ...]], dict[str, float]]


@dataclass(frozen=True)
class Around:
    """A worker's surroundings. copies: as in `WorkerEnv`. `send` may be called from any thread."""

    setup: Setup
    device: torch.device
    cache: NodeCache
    blobs: BlobStore
    scratch: Path
    copies: Path
    send: Callable[[Message], None]
    monitor: Monitor

    def deliver(self, path: Path) -> str:
        """Upload a file of the finished model; return its blob. While the master's disk is full, the model waits."""
        told = False
        while True:
            try:
                return self.blobs.upload_file(path, self.monitor.carried)
            except DiskFull as full:
                if not told:
                    self.send(Warned(error=full.to_json()))
                told = True
                self.monitor.cells += 1  # this is no hang
                time.sleep(RETRY_S)


@dataclass(frozen=True)
class Course:
    """What is trained on, and how far. total_samples: for the schedule; None where no number of steps bounds it."""

    grid: Grid
    total_samples: int | None


class DamagedCheckpoint(Exception):
    """The checkpoint that the setup names can't be read: its bytes are damaged, or gone."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


@contextmanager
def damage_of(checkpoint: CheckpointRef) -> Iterator[None]:
    """Raises DamagedCheckpoint where reading its blobs fails."""
    try:
        yield
    except (Corrupt, NotFound) as damaged:
        raise DamagedCheckpoint(checkpoint.step, damaged.fact) from damaged


class Trainer(Protocol):
    """One group's steps."""

    place: int

    def cells(self, step: int, place: int) -> Sequence[int]:
        """The cells of a step whose batches the member at `place` takes, in order; one may stand there twice."""

    def step(self, step: int, batches: Iterator[Any], trusted: bool = False) -> float:
        """Do one step on the next batches of this worker's cells; return the batch's mean loss.

        Raises SuspectStep, LostPeer, NonFinite, and what the user's code raises.
        """


class Mode(Protocol):
    """Model and optimizer of one worker. Made from the setup; all else happens in a group."""

    @property
    def num_parameters(self) -> int:
        """Of the whole model, those that train."""

    def begin(self, course: Course) -> None:
        """Call once, before anything else."""

    def join(self, group: Group) -> Trainer:
        """The trainer of this group: the same one as long as the group is, whose shares may change.

        Raises LostPeer, DamagedCheckpoint.
        """

    def leave(self) -> None:
        """Forget the group."""

    def give_up(self, key: str) -> None:
        """A member of that group is gone; called from the reading thread."""

    def copy_state(self, order: TrainRound) -> bool:
        """Members that are behind copy a member's state; whether this one was."""

    def mark_best(self) -> None:
        """The present model is the best so far."""

    def begin_training(self) -> None:
        """Training steps follow."""

    def end_training(self) -> None:
        """Steps are done. Raises InvalidSpec where they did to the model what the grid can't allow."""

    def write_checkpoint(self, order: TrainRound) -> None:
        """Take the state now; store or copy it beside the training, and tell the master once it is whole."""

    def check(self, order: CheckRound, batches: Iterator[Any]) -> Checked:
        """Compute again what another member computed, and change nothing."""

    def evaluate(self, order: EvaluateRound, source: Source) -> Evaluation:
        """(first cell, rows, finals) of this worker's share of the evaluation grid."""

    def save(self, order: SaveRound) -> Saved:
        """Upload the model that is to be delivered. Raises NonFinite rather than deliver NaN."""
