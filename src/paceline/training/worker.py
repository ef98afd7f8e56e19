"""A worker process: connects to the master, builds what it is told to, and answers rounds until the job is over."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from paceline.errors import PacelineError, ProtocolError
from paceline.messages.from_worker import Probed, Ready, ScriptReady, Unloadable, WorkerFailed, WorkerHello
from paceline.messages.message import Message
from paceline.messages.to_worker import (
    CheckRound,
    EndScript,
    EvaluateRound,
    GiveUp,
    ProbeSetup,
    RunScript,
    SaveOutput,
    SaveRound,
    ScriptSetup,
    Setup,
    ToWorker,
    TrainRound,
)
from paceline.tls import trusting
from paceline.training.channel import Channel, MasterGone, WorkerEnv
from paceline.training.data import lost_reader
from paceline.training.job import TrainingJob
from paceline.training.mode import DamagedCheckpoint, damage_of
from paceline.training.monitor import Monitor
from paceline.training.outputs import save_output
from paceline.training.packages import NodeCache
from paceline.training.probe import probe
from paceline.training.script import ScriptRun
from paceline.training.usererror import user_error
from paceline.transfer import BlobStore

BEAT_EVERY_S = 1.0


def main(env: WorkerEnv) -> None:
    """Run one worker to its end. Returns when the master says so, or is gone."""
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(env.address)
    with httpx.Client(
        base_url=env.master_url,
        headers={"Authorization": f"Bearer {env.secret}"},
        verify=trusting(env.ca) if env.ca else True,
        timeout=60,
        trust_env=False,
    ) as http:
        with suppress(MasterGone):
            WorkerProcess(env, BlobStore(http)).run()


class WorkerProcess:
    """Its main thread does what it is told; one thread reads orders, one sends beats."""

    def __init__(self, env: WorkerEnv, blobs: BlobStore) -> None:
        self._env, self._blobs = env, blobs
        self._monitor = Monitor()
        self._job: TrainingJob | None = None
        self._script: ScriptRun | None = None
        self._channel = Channel(env, self._interrupt)

    def run(self) -> None:
        """Serve until the agent ends this process. Raises MasterGone where the master goes away first."""
        self._channel.send(WorkerHello(address=self._env.address))
        threading.Thread(target=self._beat, name="beats", daemon=True).start()
        while True:
            self._channel.send(self._answer(self._channel.receive()))

    def _interrupt(self, order: GiveUp | EndScript) -> None:
        if isinstance(order, GiveUp) and self._job is not None:
            self._job.give_up(order.key)
        if isinstance(order, EndScript) and self._script is not None:
            self._script.end(order.stacks)

    def _beat(self) -> None:
        """Once the channel is gone, end the process, whatever its main thread waits for: nothing it does counts now.

        With its group: a script, or a data loader.
        """
        try:
            while True:
                self._channel.send(self._monitor.beat())
                time.sleep(BEAT_EVERY_S)
        except MasterGone:
            if os.getpgrp() == os.getpid():
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

    def _answer(self, order: ToWorker) -> Message:
        """Do an order. What goes wrong is an answer too."""
        try:
            if isinstance(order, Setup):
                return self._set_up(order)
            if isinstance(order, ProbeSetup):
                return self._probe(order)
            if isinstance(order, ScriptSetup):
                return self._set_up_script(order)
            if isinstance(order, SaveOutput):
                return save_output(order.folder, self._env, self._blobs)
            if isinstance(order, RunScript) and self._script is not None:
                with self._monitor.doing("script"):
                    return self._script.run(order)
            if self._job is None:
                raise ProtocolError("an order came before the setup.")
            return _do(self._job, order)
        except MasterGone:
            raise
        except DamagedCheckpoint as damaged:
            return Unloadable(step=damaged.step, reason=damaged.reason)
        except PacelineError as error:
            return WorkerFailed(error=error.to_json())
        except Exception as error:  # the user's own travels to them whole
            # a killed data loader, or this node's full disk at the model's delivery: neither is the job's fault
            if lost_reader(error) or (isinstance(order, SaveRound) and isinstance(error, OSError)):
                raise  # it ends this process, like a kill of its own, and another takes its place
            return WorkerFailed(error=user_error(error).to_json())

    def _cache(self) -> NodeCache:
        return NodeCache(Path(self._env.cache), [Path(folder) for folder in self._env.shared], self._blobs)

    def _set_up_script(self, setup: ScriptSetup) -> ScriptReady:
        with self._monitor.doing("building"):
            send, monitor = self._channel.send, self._monitor
            self._script = ScriptRun(setup.submission, self._env, self._cache(), self._blobs, send, monitor)
        return self._script.ready()

    def _probe(self, setup: ProbeSetup) -> Probed:
        with self._monitor.doing("probe"):
            return probe(setup, self._cache(), self._channel.send, lambda: os._exit(0))

    def _set_up(self, setup: Setup) -> Ready:
        env, cache = self._env, self._cache()
        with self._monitor.doing("building"):
            if setup.checkpoint is not None:
                with damage_of(setup.checkpoint):
                    cache.checked(setup.checkpoint.blob)
            self._job = TrainingJob(
                setup,
                cache,
                self._blobs,
                (Path(env.scratch), Path(env.copies)),
                env.address,
                self._channel.send,
                self._monitor,
            )
        return self._job.ready()


def _do(job: TrainingJob, order: ToWorker) -> Message:
    match order:
        case TrainRound():
            return job.train(order)
        case CheckRound():
            return job.check(order)
        case EvaluateRound():
            return job.evaluate(order)
        case SaveRound():
            return job.save(order)
    raise TypeError(f"no such order: {order!r}")


def _interface(address: str) -> str:
    """The network interface that holds `address`; gloo hangs for minutes when it picks another by itself."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            return str(name)
    return "lo"
