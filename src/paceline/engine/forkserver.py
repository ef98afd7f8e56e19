"""Warm workers: a process with torch imported that forks one worker for each request.

It has run no op, touched no device and started no thread, so a fork of it is as good as a fresh process, and 50 times
faster. Requests come as JSON lines on stdin; `{"forked": …}` and `{"exited": …}` go out on stdout. It runs no user
code itself. At the end of stdin, with its agent gone, it ends its workers and itself. A fork of it also measures the
node's speed, told as `{"flop_per_s": …}` before its exit.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import selectors
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import torch.utils.data  # noqa: F401

import paceline.training.worker
from paceline.engine import cgroup
from paceline.engine.warm import kill_worker
from paceline.training import calibration, dynamo
from paceline.training.channel import WorkerEnv

RESULT_BYTES = 100


class ForkServer:
    def __init__(self) -> None:
        self._keys: dict[int, str] = {}
        self._results: dict[int, int] = {}  # of calibrations: where they write it
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # a stray print must not look like an answer

    def serve(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the master's to handle
        signal.set_wakeup_fd(wake_write)
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        self._inherited = (wake_read, wake_write, selector)
        gc.collect()
        gc.freeze()  # keeps the collector from touching, and so copying, the pages shared with workers
        self._answer({"warm": os.getpid()})
        pending = b""
        while True:
            for key, _ in selector.select():
                if key.fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                    continue
                received = os.read(0, 1 << 20)
                if not received:
                    return self._end_all()
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self._handle(json.loads(line))

    def _handle(self, request: dict[str, Any]) -> None:
        if "kill" in request:
            for pid in [pid for pid, key in self._keys.items() if key == request["kill"]]:
                kill_worker(pid)
            return
        try:
            result_read, result_write = os.pipe() if "calibrate" in request else (-1, -1)
            pid = os.fork()
        except OSError as error:  # a limit of processes or files costs this worker, not those that run
            print(f"{request['key']} can't be forked: {error}", file=sys.stderr)  # noqa: T201 - the agent's log
            return self._answer({"exited": request["key"], "status": 1})
        if pid == 0:
            self._become(request, result_write)
        if "calibrate" in request:
            os.close(result_write)
            self._results[pid] = result_read
        self._keys[pid] = request["key"]
        self._answer({"forked": request["key"], "pid": pid})

    def _become(self, request: dict[str, Any], result: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # the group is the worker and its data loaders: they end together
            wake_read, wake_write, selector = self._inherited
            selector.close()
            os.close(wake_read)
            os.close(wake_write)
            self._out.close()  # its end tells the agent that the server is gone
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            if "calibrate" in request:
                _calibrate(request["calibrate"], result)
            else:
                _work(WorkerEnv.model_validate(request["env"]))
            status = 0
        except BaseException:  # noqa: BLE001 - a fork must not return into the server
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while self._keys:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _kill_loaders(pid)
            if pid in self._results:
                self._tell_result(self._results.pop(pid))
            self._answer({"exited": self._keys.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _tell_result(self, pipe: int) -> None:
        with os.fdopen(pipe, "rb") as file:
            if told := file.read(RESULT_BYTES):
                self._answer({"flop_per_s": float(told)})

    def _end_all(self) -> None:
        for pid in self._keys:
            kill_worker(pid)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer) + "\n")


def _work(env: WorkerEnv) -> None:
    log = os.open(env.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    _see_only(env.device)
    paceline.training.worker.main(env)


def _calibrate(device: str, result: int) -> None:
    _see_only(device)
    try:
        flop_per_s = calibration.measure(device.split(":")[0], cgroup.cores() or math.inf)
    except (AssertionError, RuntimeError) as error:  # torch's, for a device that this build of it can't use
        print(f"{device} can't be measured: {error}", file=sys.stderr)  # noqa: T201 - the agent's log
        return
    os.write(result, repr(flop_per_s).encode())


def _see_only(device: str) -> None:
    if device.startswith("cuda:"):
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver's tool numbers them
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")


def _kill_loaders(pid: int) -> None:
    """What is left of the group of a worker that has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def main() -> None:
    if threading.active_count() != 1:
        raise RuntimeError(f"a fork server must have one thread; imports started {threading.enumerate()}")
    dynamo.defer()
    # a worker keeps the connections of each group that it left (training/replica.py)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Path("/proc/self/comm").write_text("paceline-warm") if Path("/proc/self/comm").exists() else None
    with contextlib.suppress(BrokenPipeError):  # the agent is gone before anyone was started
        ForkServer().serve()


if __name__ == "__main__":
    main()
