"""What a worker says to the master.

Its channel carries the attempt that it belongs to, so that a late message of a dead attempt can't match.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from paceline.measured import Profile
from paceline.messages.message import CheckpointRef, Message


class ModelFile(Message):
    """One safetensors file of a model that is delivered in several, and the blob that holds it.

    name: of a file, not a path: the client writes it into the model's folder.
    """

    name: str = Field(pattern=r"^[\w.-]+\.safetensors$")
    blob: str
    nbytes: int


class WorkerHello(Message):
    """First message of a worker on its channel."""

    kind: Literal["hello"] = "hello"
    address: str


class Ready(Message):
    """Everything is built. fingerprint: of the data, compared over workers. store_port: of this worker's store."""

    kind: Literal["ready"] = "ready"
    fingerprint: str
    train_samples: int
    parameters: int
    store_port: int


class Unloadable(Message):
    """Instead of Ready: the bytes of the setup's checkpoint are damaged, or gone."""

    kind: Literal["unloadable"] = "unloadable"
    step: int
    reason: str


class Pace(Message):
    """How fast a worker did some steps. busy_s: its `cells` took, from reading to backward; waited_s: in exchanges."""

    steps: int
    cells: int
    seconds: float
    busy_s: float
    waited_s: float


class Probed(Message):
    """What the job costs on this device, or, without times, that it needs more memory than it may take."""

    kind: Literal["probed"] = "probed"
    profile: Profile
    seconds: float


class Trained(Message):
    """The round is done. losses: of every step, the same on all workers. seconds: of all of it.

    pace: of its steps, less the first one after a change of share: that waits for readers, and warms a worker up.
    """

    kind: Literal["trained"] = "trained"
    from_step: int
    step: int
    losses: tuple[float, ...]
    seconds: float
    pace: Pace


class Evidence(Message):
    """What one worker computed of a step: its part of the loss, the norm of its partial sums, and their digest."""

    loss: float
    norm: float
    digest: str


class Suspected(Message):
    """Instead of Trained: what `suspects` computed of the next step, after `step`, is not finite, or absurd.

    All members say so alike, and nothing of that step is in anyone's state. losses: of the steps before it.
    evidence: of the sender's own part, where it is a suspect.
    """

    kind: Literal["suspected"] = "suspected"
    from_step: int
    step: int
    losses: tuple[float, ...]
    suspects: tuple[int, ...]
    reason: str
    evidence: Evidence | None = None


class Checked(Message):
    """error: what is wrong with the step's samples or the model, where the second computation was not finite either."""

    kind: Literal["checked"] = "checked"
    step: int
    rank: int
    evidence: Evidence
    error: dict[str, Any] | None = None


class Evaluated(Message):
    """rows: for each grid cell of my share, in order: samples, then sample-weighted sums of each value.

    finals: values of stateful metrics, from rank 0, which sees the whole grid for them.
    """

    kind: Literal["evaluated"] = "evaluated"
    step: int
    first_cell: int
    rows: tuple[tuple[float, ...], ...]
    finals: dict[str, float] = Field(default_factory=dict)
    seconds: float


class Saved(Message):
    """The model is uploaded as a blob; a sharded one as `files`, and the blob is their index in Hugging Face's layout.

    Members that only lent their shards leave the rest empty.
    """

    kind: Literal["saved"] = "saved"
    step: int
    blob: str = ""
    nbytes: int = 0
    digest: str = ""
    files: tuple[ModelFile, ...] = ()


class Progressed(Message):
    """Inside a round: how far it is. Nothing is committed by it."""

    kind: Literal["progressed"] = "progressed"
    step: int
    loss: float | None
    samples_per_s: float


class Beat(Message):
    """Every second: what the worker is doing. step, cells, carried: only progress changes them.

    cells: of a script, how often it was seen to make progress. carried: bytes of data in shards that came,
    and of the model that went. stack: of its main thread.
    """

    kind: Literal["beat"] = "beat"
    step: int
    cells: int
    carried: int = 0
    phase: str
    stack: str


class CheckpointWritten(Message):
    kind: Literal["checkpoint_written"] = "checkpoint_written"
    checkpoint: CheckpointRef


class Copied(Message):
    """This member's shard is where the order wanted it. seconds: that it took. error: why it is not."""

    kind: Literal["copied"] = "copied"
    step: int
    seconds: float
    error: dict[str, Any] | None = None


class Warned(Message):
    """Something went wrong that training survives, such as a checkpoint that could not be stored."""

    kind: Literal["warned"] = "warned"
    error: dict[str, Any]


class WorkerFailed(Message):
    """Not to be retried: the user's code raised, or training went non-finite. `error` is a PacelineError's JSON."""

    kind: Literal["failed"] = "failed"
    error: dict[str, Any]


class PeerLost(Message):
    """An exchange failed: some other worker is gone. The master knows which; this worker waits for its word.

    step: this worker's state is that after so many steps; losses: of the round's steps that it completed.
    """

    kind: Literal["peer_lost"] = "peer_lost"
    step: int
    losses: tuple[float, ...]
    reason: str


class ScriptReady(Message):
    """The script may start. store_port: of this worker's store, which rank 0's is the rendezvous of."""

    kind: Literal["script_ready"] = "script_ready"
    store_port: int


class Returned(Message):
    """What a function returned on one rank, as a blob: JSON, or a safetensors file of its tensors by name."""

    form: Literal["json", "tensor", "tensors"]
    blob: str
    nbytes: int


class ScriptEnded(Message):
    """status: exit code, or minus the signal's number. ended_at: seconds since the epoch, by the node's clock.

    error: where it failed, a PacelineError's JSON with the script's last traceback. returned: of a function.
    wrote: whether there is something in the output folder on its node.
    """

    kind: Literal["script_ended"] = "script_ended"
    status: int
    ended_at: float
    error: dict[str, Any] | None = None
    returned: Returned | None = None
    wrote: bool = False


class Reported(Message):
    """What the script said of its progress in the last half second. step: the newest one, where it named any."""

    kind: Literal["reported"] = "reported"
    step: int | None
    values: dict[str, float]


class OutputSaved(Message):
    """The output folder is uploaded as a tar file; blob is None where the script made no such folder."""

    kind: Literal["output_saved"] = "output_saved"
    blob: str | None
    nbytes: int = 0


FromWorker = Annotated[
    WorkerHello
    | Beat
    | Ready
    | Unloadable
    | Probed
    | Trained
    | Suspected
    | Checked
    | Evaluated
    | Saved
    | Progressed
    | CheckpointWritten
    | Copied
    | Warned
    | WorkerFailed
    | PeerLost
    | ScriptReady
    | ScriptEnded
    | Reported
    | OutputSaved,
    Field(discriminator="kind"),
]

from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
