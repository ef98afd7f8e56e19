"""What an agent says to the master: what its node is and does, and what became of the workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, TypeAdapter

from paceline.measured import Calibration
from paceline.messages.message import Message
from paceline.plan import Device
from paceline.spec import Versions


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

from_agent: TypeAdapter[FromAgent] = TypeAdapter(FromAgent)
