"""One rank of a script: fetch the project, install what it needs, and run it as torchrun would.

The script is a process of its own below the worker, in the worker's process group: whatever ends the worker ends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from paceline.archive import unpack_folder
from paceline.messages.from_worker import Returned, ScriptEnded, ScriptReady
from paceline.messages.message import Message
from paceline.messages.to_worker import RunScript
from paceline.reports import REPORTS_FILE
from paceline.script import ScriptSubmission
from paceline.training.call import CallFiles
from paceline.training.channel import WorkerEnv
from paceline.training.monitor import Monitor
from paceline.training.outputs import is_written, project_of
from paceline.training.packages import NodeCache
from paceline.training.requirements import python_with
from paceline.training.scripterror import script_error
from paceline.training.scriptwatch import ScriptWatch
from paceline.training.tensorboard import EventFiles
from paceline.transfer import BlobStore

LOG_TAIL_BYTES = 64 * 1024
TERM_GRACE_S = 10.0
EVENT_FOLDERS = ("runs", "lightning_logs")  # where SummaryWriter and Lightning write, unless told otherwise
# Of workers that train: see engine/warm.py.
OURS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


class ScriptRun:
    """Built from a ScriptSetup, which it does; then runs the script. `send` may be called from any thread."""

    def __init__(
        self,
        submission: ScriptSubmission,
        env: WorkerEnv,
        cache: NodeCache,
        blobs: BlobStore,
        send: Callable[[Message], None],
        monitor: Monitor,
    ) -> None:
        self._options, self._env, self._blobs = submission.options, env, blobs
        self._send, self._monitor = send, monitor
        self._scratch, self._project = Path(env.scratch), project_of(env)
        self._unpack(cache.path(submission.project) if submission.project else None)
        self._python = python_with(submission.options.requirements, Path(env.cache) / "environments")
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: signal.Signals | None = None  # to end, by this signal
        self._call: CallFiles | None = None
        if submission.function is not None:
            self._call = CallFiles(
                pickle=cache.path(submission.function.pickle),
                buffers=tuple(cache.path(name) for name in submission.function.buffers),
                result=self._scratch / "result",
                error=self._scratch / "call_error.json",
            )
        # as torchrun's: the agent's store, and not one of the script's, is where its ranks meet
        self._store = dist.TCPStore(env.address, 0, is_master=True, wait_for_workers=False)

    def _unpack(self, archive: Path | None) -> None:
        """The project, once a node: its ranks share it, and later attempts find there what earlier ones wrote."""
        self._project.parent.mkdir(parents=True, exist_ok=True)
        with (self._project.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._project.exists():
                return
            if archive is None:
                self._project.mkdir()
            else:
                unpack_folder(archive, self._project)

    def ready(self) -> ScriptReady:
        return ScriptReady(store_port=self._store.port)

    def run(self, order: RunScript) -> ScriptEnded:
        """Run it to its end."""
        log, reports = Path(self._env.log), self._scratch / "reports"
        environment = self._environment(order) | {REPORTS_FILE: str(reports)}
        before = log.stat().st_size
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the fork server ignores it, and a child would inherit that
        events = EventFiles(self._watched()) if order.environment["RANK"] == "0" else None
        self._process = process = subprocess.Popen(self._command(), cwd=self._project, env=environment)  # noqa: S603
        with ScriptWatch(process.pid, log, reports, events, self._send, self._monitor):
            if self._asked is not None:  # before there was a process
                self._signal(process, self._asked)
            status = process.wait()
            ended_at = time.time()
        wrote = is_written(self._project / self._options.outputs)
        if status:
            error = self._failure(status, log, before)
            return ScriptEnded(status=status, ended_at=ended_at, error=error, wrote=wrote)
        return ScriptEnded(status=0, ended_at=ended_at, returned=self._upload_result(), wrote=wrote)

    def _environment(self, order: RunScript) -> dict[str, str]:
        """That of torchrun, and stacks in the log where the script crashes, or is aborted because it hangs."""
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        ours = {"OMP_NUM_THREADS": str(self._options.threads), "PYTHONFAULTHANDLER": "1"}
        errors = {"TORCHELASTIC_ERROR_FILE": str(self._scratch / "torchelastic_error.json")}
        return inherited | ours | self._options.env | order.environment | errors

    def end(self, stacks: bool) -> None:
        """Ask the script to end, and make it. stacks: have it show its threads'. Called from the reading thread."""
        self._asked = signal.SIGABRT if stacks else signal.SIGTERM
        if self._process is not None:
            self._signal(self._process, self._asked)

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        if number == signal.SIGABRT and hasattr(resource, "prlimit"):
            with suppress(ProcessLookupError):  # the stacks are wanted, not a core file of its whole memory
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        process.send_signal(number)
        threading.Timer(TERM_GRACE_S, process.kill).start()

    def _watched(self) -> tuple[Path, ...]:
        """Where TensorBoard's files are looked for; not in the whole project, which may be large."""
        return tuple(self._project / name for name in dict.fromkeys((self._options.outputs, *EVENT_FOLDERS)))

    def _command(self) -> list[str]:
        if self._call is None:
            return [self._python, "-u", *self._options.command]
        told = self._scratch / "call.json"
        told.write_text(self._call.model_dump_json())
        return [self._python, "-u", "-m", "paceline.training.call", str(told)]

    def _failure(self, status: int, log: Path, before: int) -> dict[str, Any]:
        if self._call is not None and self._call.error.exists():
            found: dict[str, Any] = json.loads(self._call.error.read_text())
            return found
        with log.open("rb") as file:
            file.seek(max(before, log.stat().st_size - LOG_TAIL_BYTES))
            printed = file.read().decode(errors="replace")
        return script_error(status, printed).to_json()

    def _upload_result(self) -> Returned | None:
        written = self._call.written() if self._call else None
        if written is None:
            return None
        form, path = written
        return Returned(form=form, blob=self._blobs.upload_file(path), nbytes=path.stat().st_size)
