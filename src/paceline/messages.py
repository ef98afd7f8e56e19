"""What the master, the agents and the workers say to each other: length-bounded JSON, parsed once, never pickles.

Every message of a worker carries the attempt that it belongs to, so that a late one of a dead attempt can't match.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, TypeAdapter

from paceline.measured import Calibration, Profile
from paceline.plan import Device, Sharding
from paceline.script import ScriptSubmission
from paceline.spec import Submission, Versions

MAX_MESSAGE_BYTES = 16 * 2**20


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class CheckpointRef(Message):
    """A published checkpoint: the state after `step` committed steps.

    blob: one safetensors file with JSON metadata; in sharded training the manifest, which names the `files`.
    """

    step: int
    blob: str
    nbytes: int
    files: tuple[str, ...] = ()

    @property
    def blobs(self) -> tuple[str, ...]:
        return (self.blob, *self.files)


class ModelFile(Message):
    """One safetensors file of a model that is delivered in several, and the blob that holds it."""

    name: str
    blob: str
    nbytes: int


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


# ---- master to worker ----


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


# ---- worker to master ----


class WorkerHello(Message):
    """First message of a worker on its channel."""

    kind: Literal["hello"] = "hello"
    pid: int
    address: str


class Ready(Message):
    """Everything is built. fingerprint: of the data, compared over workers. store_port: of this worker's store."""

    kind: Literal["ready"] = "ready"
    fingerprint: str
    train_samples: int
    val_samples: int
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
    seconds: float
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
    finals: dict[str, float] = {}
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
    """Every second: what the worker is doing. step, cells, fetched: only progress changes them.

    cells: of a script, how often it was seen to make progress. fetched: bytes of data in shards. stack: of its main
    thread.
    """

    kind: Literal["beat"] = "beat"
    step: int
    cells: int
    fetched: int = 0
    phase: str
    stack: str


class CheckpointWritten(Message):
    kind: Literal["checkpoint_written"] = "checkpoint_written"
    checkpoint: CheckpointRef


class Copied(Message):
    """This member's shard is where the order wanted it. seconds: that training stood still. error: why it is not."""

    kind: Literal["copied"] = "copied"
    step: int
    seconds: float
    error: dict[str, Any] | None = None


class Warned(Message):
    """Something went wrong that training survives, such as a checkpoint that could not be stored."""

    kind: Literal["warned"] = "warned"
    error: dict[str, Any]


class WorkerFailed(Message):
    """Not to be retried: the user's code raised, or training went non-finite. `error` is a PacelineError's JSON.

    It is empty where this worker saw a non-finite step whose cause lies in another worker's cells.
    """

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


# ---- master to agent ----


class Welcome(Message):
    kind: Literal["welcome"] = "welcome"
    node_id: str


class Refused(Message):
    """The master does not take this agent; `error` says why."""

    kind: Literal["refused"] = "refused"
    error: dict[str, Any]


class StartWorker(Message):
    """Start one worker process. secret: opens the worker's channel, for this attempt only."""

    kind: Literal["start_worker"] = "start_worker"
    job_id: str
    attempt: int
    rank: int
    secret: str
    threads: int
    device: str


class StopWorkers(Message):
    """End workers of an attempt, at once: those of these ranks, or all."""

    kind: Literal["stop_workers"] = "stop_workers"
    job_id: str
    attempt: int
    ranks: tuple[int, ...] | None = None


class ForgetJob(Message):
    """The job has ended: nothing of it is to stay on the node."""

    kind: Literal["forget_job"] = "forget_job"
    job_id: str


class ListenForProbe(Message):
    """Let another agent that knows the secret measure the way to you; answer with ProbeListening or ProbeFailed."""

    kind: Literal["listen_for_probe"] = "listen_for_probe"
    probe: str
    secret: str


class ProbeLink(Message):
    """Measure the way to the agent that listens there; answer with LinkProbed or ProbeFailed."""

    kind: Literal["probe_link"] = "probe_link"
    probe: str
    host: str
    port: int
    secret: str


ToAgent = Annotated[
    Welcome | Refused | StartWorker | StopWorkers | ListenForProbe | ProbeLink | ForgetJob, Field(discriminator="kind")
]


# ---- agent to master ----


class AgentHello(Message):
    """First message of an agent. identity: one that comes again has it again, and no other; "" for one without.

    machine_cores: of which it offers `cores`; 0 where it does not tell. tmpfs: bytes free in its file
    system in memory. price: of the node's hour. speed: as far as it is measured.
    """

    kind: Literal["agent_hello"] = "agent_hello"
    name: str
    identity: str = ""
    is_master: bool
    address: str
    hardware_class: str
    cores: int
    machine_cores: int = 0
    memory: int
    tmpfs: int = 0
    devices: tuple[Device, ...] = ()
    price: NonNegativeFloat = 0.0
    speed: tuple[Calibration, ...] = ()
    versions: Versions

    @property
    def machine(self) -> str:
        """The same for all agents of one machine, with or without containers; "" where it is not known."""
        return self.identity.partition("/")[0]


class Load(Message):
    """Sent every two seconds. available_memory: bytes that new processes could use.

    Cores' worth of processor time, lately: busy_cores: of the whole machine; worker_cores: of this node's workers.
    """

    kind: Literal["load"] = "load"
    available_memory: int
    busy_cores: float
    worker_cores: float


class Calibrated(Message):
    """The node's speed is known now, or that of one more device: all that is known of it."""

    kind: Literal["calibrated"] = "calibrated"
    speed: tuple[Calibration, ...]


class ProbeListening(Message):
    kind: Literal["probe_listening"] = "probe_listening"
    probe: str
    port: int


class LinkProbed(Message):
    """latency_s: one way. bytes_per_s: of the slower direction."""

    kind: Literal["link_probed"] = "link_probed"
    probe: str
    latency_s: float
    bytes_per_s: float


class ProbeFailed(Message):
    kind: Literal["probe_failed"] = "probe_failed"
    probe: str
    reason: str


ProbeAnswer = ProbeListening | LinkProbed | ProbeFailed


class WorkerStarted(Message):
    kind: Literal["worker_started"] = "worker_started"
    job_id: str
    attempt: int
    rank: int
    pid: int


class WorkerExited(Message):
    """status: exit code, or minus the signal's number. tail: the last lines that the worker printed."""

    kind: Literal["worker_exited"] = "worker_exited"
    job_id: str
    attempt: int
    rank: int
    status: int
    tail: str = ""


class LogLines(Message):
    """What a worker printed. cut: bytes before it that the node left out, as they were too many."""

    kind: Literal["log_lines"] = "log_lines"
    job_id: str
    attempt: int
    rank: int
    text: str
    cut: int = 0


FromAgent = Annotated[
    AgentHello
    | Load
    | WorkerStarted
    | WorkerExited
    | LogLines
    | Calibrated
    | ProbeListening
    | LinkProbed
    | ProbeFailed,
    Field(discriminator="kind"),
]

to_worker: TypeAdapter[ToWorker] = TypeAdapter(ToWorker)
from_worker: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
to_agent: TypeAdapter[ToAgent] = TypeAdapter(ToAgent)
from_agent: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
