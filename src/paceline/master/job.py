"""A job as its machine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from paceline.master.commands import Command
from paceline.master.committed import Checkpoint, Copies, Training
from paceline.master.states import Queued, Running, State
from paceline.measured import Measured
from paceline.plan import Node
from paceline.spec import Submission

MAX_FAILED_JOINS = 3


class Live(Protocol):
    """What a job of any kind is known by."""

    @property
    def state(self) -> object: ...

    @property
    def state_name(self) -> str: ...

    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True)
class Job:
    """attempt: of the present or last gang start, 0 before the first. furthest: the last step ever committed.

    fruitless: attempts in a row, with the present one, that have committed no step beyond `furthest`. checkpoints: that
    the next attempt may start from, newest first. copies: of a sharded job, where they are newer.
    wish: how many workers the user asked for since it was submitted. hardware_class: of the first attempt; it is part
    of the result, so that later ones keep it. probed: how its probe came out, None before it; probes are the workers
    of attempt 0. known, nodes: what the present attempt was planned by; nodes by their ids, with those that came since.
    """

    id: str
    submission: Submission
    state: State = field(default_factory=Queued)
    attempt: int = 0
    fruitless: int = 0
    furthest: int = 0
    elapsed_s: float = 0.0
    training: Training = field(default_factory=Training)
    checkpoints: tuple[Checkpoint, ...] = ()
    copies: Copies | None = None
    wish: int | None = None
    hardware_class: str | None = None
    probed: str | None = None
    known: Measured = field(default_factory=Measured)
    nodes: Mapping[str, Node] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest."""
        return self.checkpoints[0] if self.checkpoints else None

    @property
    def restored(self) -> Training:
        """What the next attempt goes on from: the newer one of checkpoint and copies."""
        if self.copies is not None:
            return self.copies.training
        return self.checkpoint.training if self.checkpoint else Training()

    @property
    def state_name(self) -> str:
        return type(self.state).__name__.upper()

    def trained_s(self, now: float) -> float:
        """Seconds of training, with those of an attempt that runs."""
        return self.elapsed_s + now - self.state.since if isinstance(self.state, Running) else self.elapsed_s

    @property
    def wanted(self) -> int:
        """How many more workers a running job could use."""
        state = self.state
        if not isinstance(state, Running) or not state.plan.elastic or state.stopping or state.preempted:
            return 0
        if state.failed_joins >= MAX_FAILED_JOINS:
            return 0
        return max(0, state.target - state.staying)


Outcome = tuple[Job, list[Command]]
