"""What a script's job is made of, beside what all jobs have in common (`states`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from paceline.master.commands import Command
from paceline.master.states import Cancelled, Failed, Queued, Recovering, Succeeded, Waiting
from paceline.messages.from_worker import OutputSaved, ScriptEnded
from paceline.plan import Plan
from paceline.script import ScriptSubmission


class ScriptProgress(BaseModel):
    """restarts: those that count. step: the furthest that was reported; history: of it, the newest values alone.

    cancelled: by the user, whatever is still to be done for it.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    restarts: int = 0
    step: int = 0
    history: tuple[dict[str, float], ...] = ()
    cancelled: bool = False


@dataclass(frozen=True)
class Ending:
    """Why a script is to end on all ranks, and what comes then: it starts anew ("again"), which counts as one of its
    restarts and is bounded by these ("restart"), or the job has failed or is cancelled.

    error: where the script is at fault, or the job fails. hung: of the ranks that were made to show their stacks.
    """

    reason: str
    then: Literal["again", "restart", "fail", "cancel"]
    error: dict[str, Any] | None = None
    hung: tuple[int, ...] = ()


CANCELLED = Ending("it was cancelled", "cancel")


@dataclass(frozen=True)
class ScriptStarting:
    """ready: ranks whose project and requirements are there. store: (host, port) of rank 0's, once it is known."""

    plan: Plan
    address: str = ""
    ready: frozenset[int] = frozenset()
    store: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Begun:
    """It was begun on all ranks, at `since`. ended: how it did, by rank; gone: ranks whose worker is lost."""

    plan: Plan
    since: float
    ended: Mapping[int, ScriptEnded] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()

    @property
    def live(self) -> tuple[int, ...]:
        """Ranks on which it has not ended."""
        ranks = (placement.rank for placement in self.plan.workers)
        return tuple(rank for rank in ranks if rank not in self.ended and rank not in self.gone)

    @property
    def failed(self) -> Mapping[int, ScriptEnded]:
        return {rank: end for rank, end in self.ended.items() if end.status}

    def beside(self, rank: int) -> tuple[int, ...]:
        """All ranks on this rank's node: they share an output folder."""
        node = self.plan.workers[rank].node_id
        return tuple(placement.rank for placement in self.plan.workers if placement.node_id == node)


@dataclass(frozen=True)
class ScriptRunning(Begun):
    """counters: of the progress that each rank's worker has seen. moved_at: when the last of them grew.

    looked_at: when it was last asked whether it hangs.
    """

    counters: Mapping[int, int] = field(default_factory=dict)
    moved_at: float = 0.0
    looked_at: float = 0.0


@dataclass(frozen=True)
class ScriptEnding(Begun):
    """All ranks were asked to end, and have a moment to save what they will."""

    why: Ending = field(kw_only=True)


@dataclass(frozen=True)
class ScriptSaving(Begun):
    """It has ended, and what it wrote is fetched. why: None where it succeeded.

    asked: one rank of each node; kept: what came of it. anew: by workers of their own, as the script's are gone.
    """

    why: Ending | None = field(kw_only=True)
    asked: frozenset[int] = field(kw_only=True)
    kept: Mapping[int, OutputSaved] = field(default_factory=dict)
    anew: bool = False


ScriptState = (
    Queued
    | ScriptStarting
    | ScriptRunning
    | ScriptEnding
    | ScriptSaving
    | Recovering
    | Waiting
    | Succeeded
    | Failed
    | Cancelled
)  # as `states.State`


@dataclass(frozen=True)
class ScriptJob:
    """attempt, fruitless, elapsed_s: as of `job.Job`. training: what the store keeps of its progress.

    ran: the plan of the last attempt in which the script ran: what it wrote is on these nodes. over: how the job ends
    once that attempt's workers are gone, and what they wrote is fetched.
    """

    id: str
    submission: ScriptSubmission
    state: ScriptState = field(default_factory=Queued)
    attempt: int = 0
    fruitless: int = 0
    elapsed_s: float = 0.0
    training: ScriptProgress = field(default_factory=ScriptProgress)
    ran: Plan | None = None
    over: Ending | None = None

    @property
    def state_name(self) -> str:
        """An ending script, and one whose output is fetched, are running to everybody else."""
        if isinstance(self.state, Begun):
            return "RUNNING"
        return type(self.state).__name__.removeprefix("Script").upper()

    @property
    def nodes(self) -> tuple[str, ...]:
        """On which the script wrote last, that of rank 0 first."""
        return nodes_of(self.ran) if self.ran else ()


ScriptOutcome = tuple[ScriptJob, list[Command]]


def nodes_of(plan: Plan) -> tuple[str, ...]:
    """By rank."""
    return tuple(dict.fromkeys(placement.node_id for placement in plan.workers))
