"""A worker process: connects to the master, builds what it is told to, and answers rounds until the job is over."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path

import httpx
import psutil

from paceline.errors import PacelineError, UserCodeError
from paceline.messages import (
    EvaluateRound,
    Finish,
    Message,
    PeerLost,
    SaveRound,
    Setup,
    ToWorker,
    TrainRound,
    WorkerFailed,
    WorkerHello,
)
from paceline.training.channel import Channel, MasterGone, WorkerEnv
from paceline.training.diagnose import NonFiniteStep, diagnose
from paceline.training.group import LostPeer
from paceline.training.job import TrainingJob
from paceline.training.packages import NodeCache
from paceline.transfer import BlobStore


def main(env: WorkerEnv) -> None:
    """Run one worker to its end. Returns when the master says so, or is gone."""
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(env.address)
    with httpx.Client(
        base_url=env.master_url,
        headers={"Authorization": f"Bearer {env.secret}"},
        verify=env.ca or True,
        timeout=60,
        trust_env=False,
    ) as http:
        try:
            channel = Channel(env)
            channel.send(WorkerHello(pid=os.getpid(), address=env.address))
            _serve(channel, env, BlobStore(http))
            channel.close()
        except MasterGone:
            return


def _serve(channel: Channel, env: WorkerEnv, blobs: BlobStore) -> None:
    job: TrainingJob | None = None
    while True:
        order = channel.receive()
        if isinstance(order, Finish):
            return
        try:
            if isinstance(order, Setup):
                cache = NodeCache(Path(env.cache), [Path(folder) for folder in env.shared], blobs)
                job = TrainingJob(order, cache, blobs, Path(env.scratch), env.address, channel.send)
                channel.send(job.ready())
            elif job is not None:
                channel.send(_do(job, order))
        except MasterGone:
            raise
        except LostPeer as lost:
            channel.send(PeerLost(reason=str(lost)[:500]))
        except NonFiniteStep as failed:
            found = diagnose(failed, job.program, job.grid) if job else None
            error = found.to_json() if found else {}
            channel.send(WorkerFailed(error=error))
        except PacelineError as error:
            channel.send(WorkerFailed(error=error.to_json()))
        except Exception as error:  # noqa: BLE001 - the user's own; it travels to them whole
            channel.send(WorkerFailed(error=_user_error(error).to_json()))


def _do(job: TrainingJob, order: ToWorker) -> Message:
    match order:
        case TrainRound():
            return job.train(order)
        case EvaluateRound():
            return job.evaluate(order)
        case SaveRound():
            return job.save(order)
    raise TypeError(f"no such order: {order!r}")


def _user_error(error: Exception) -> UserCodeError:
    """The user's traceback, without our frames above their code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent.parent)
    first = next((i for i, frame in enumerate(frames) if not frame.filename.startswith(ours)), 0)
    text = "".join(
        ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:]),
         *traceback.format_exception_only(error)]
    )  # fmt: skip
    return UserCodeError(
        f"your code raised {type(error).__name__}: {error}",
        "Its traceback follows.",
        type=type(error).__name__,
        traceback=text,
    )


def _interface(address: str) -> str:
    """The network interface that holds `address`; gloo hangs for minutes when it picks another by itself."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            return str(name)
    return "lo"
