"""What the master says to an agent: start and end workers, forget a job, measure a link."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from paceline.messages.message import Message


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

to_agent: TypeAdapter[ToAgent] = TypeAdapter(ToAgent)
