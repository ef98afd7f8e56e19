"""What the master says to a worker: build, do a round, run a script."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from paceline.messages.message import CheckpointRef, Message
from paceline.plan import Sharding
from paceline.script import ScriptSubmission
from paceline.spec import Submission


class Setup(Message):
    """Build everything; answer with Ready. sharding: the worker holds a shard of the model, once its group is known.

    copies: the step whose copies in nodes' memory are to be loaded, instead of a checkpoint.
    """

    kind: Literal["setup"] = "setup"
    submission: Submission
    rank: int
    device: str
    checkpoint: CheckpointRef | None = None
    sharding: Sharding | None = None
    copies: int | None = None

    @property
    def from_step(self) -> int:
        """What is loaded is the state after so many steps."""
        if self.copies is not None:
            return self.copies
        return self.checkpoint.step if self.checkpoint else 0


class ProbeSetup(Message):
    """Instead of Setup: measure the job, train nothing, and answer with Probed. memory: bytes that it may take."""

    kind: Literal["probe"] = "probe"
    submission: Submission
    device: str
    hardware_class: str
    memory: int


class CopyOrder(Message):
    """Copy every member's shard of this commit into nodes' memory; say Copied once it is there.

    to: by place, the place that also gets it, the member's own where there is no other node. kept: the step whose
    copies still count; all older ones go.
    """

    to: tuple[int, ...]
    kept: int | None = None


class Group(Message):
    """The workers that train together, by rank, each with its share. The first serves the store at host and port.

    key: fresh for every forming; the shares of a group may change without one.
    """

    key: str
    host: str
    port: int
    members: tuple[int, ...]
    shares: tuple[tuple[int, int], ...]


class TrainRound(Message):
    """From the committed state after `from_step` steps, train up to `to_step`; answer with Trained or PeerLost.

    behind: members that have another state; they copy it from `source` first. trusted_step: a step whose gradients were
    computed twice, to the same bits: large as they are, they are right.
    """

    kind: Literal["train"] = "train"
    group: Group
    from_step: int
    to_step: int
    mark_best: bool = False
    checkpoint: bool = False
    copy_shards: CopyOrder | None = None
    behind: tuple[int, ...] = ()
    source: int | None = None
    trusted_step: int | None = None


class CheckRound(Message):
    """`checker` computes again what the member `rank` computed of this step; answer with Checked."""

    kind: Literal["check"] = "check"
    group: Group
    step: int
    rank: int
    checker: int


class EvaluateRound(Message):
    """Evaluate your share of the validation grid; answer with Evaluated."""

    kind: Literal["evaluate"] = "evaluate"
    group: Group
    step: int


class SaveRound(Message):
    """Upload the model; answer with Saved. Only the first member gets this; of a sharded job all do, with the group."""

    kind: Literal["save"] = "save"
    group: Group | None = None
    step: int
    which: Literal["last", "best"]


Round = TrainRound | CheckRound | EvaluateRound | SaveRound


class GiveUp(Message):
    """A member of this group is gone: stop waiting for it. Has no answer of its own."""

    kind: Literal["give_up"] = "give_up"
    key: str


class ScriptSetup(Message):
    """Fetch the project, install its requirements, serve a store; answer with ScriptReady."""

    kind: Literal["script_setup"] = "script_setup"
    submission: ScriptSubmission


class RunScript(Message):
    """Run the script, or call the function, with these variables in its environment; answer with ScriptEnded."""

    kind: Literal["run_script"] = "run_script"
    environment: dict[str, str]


class EndScript(Message):
    """Make the script end: by SIGTERM, and ten seconds later by SIGKILL. Has no answer of its own.

    stacks: it hangs; SIGABRT instead, so that the stacks of its threads come into the log.
    """

    kind: Literal["end_script"] = "end_script"
    stacks: bool = False


class SaveOutput(Message):
    """Upload this folder of the script's project (one rank of each node gets this); answer with OutputSaved."""

    kind: Literal["save_output"] = "save_output"
    folder: str


ToWorker = Annotated[
    Setup
    | ProbeSetup
    | TrainRound
    | CheckRound
    | EvaluateRound
    | SaveRound
    | GiveUp
    | ScriptSetup
    | RunScript
    | EndScript
    | SaveOutput,
    Field(discriminator="kind"),
]

to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
