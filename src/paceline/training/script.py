"""One rank of a script: fetch the project, install what it needs, run it as torchrun would, and keep its output.

The script is a process of its own below the worker, in the worker's process group: whatever ends the worker ends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from paceline.archive import pack_folder, unpack_folder
from paceline.errors import UserCodeError
from paceline.messages.from_worker import OutputSaved, Reported, Returned, ScriptEnded, ScriptReady
from paceline.messages.message import Message
from paceline.messages.to_worker import RunScript
from paceline.reports import REPORTS_FILE, ReportReader
from paceline.script import ScriptSubmission
from paceline.training.call import CallFiles
from paceline.training.channel import MasterGone, WorkerEnv
from paceline.training.packages import NodeCache
from paceline.training.requirements import python_with
from paceline.training.tensorboard import EventFiles
from paceline.transfer import BlobStore

REPORT_EVERY_S = 0.5
LOG_TAIL_BYTES = 64 * 1024
TOLD_LINES = 20
TERM_GRACE_S = 10.0
EVENT_FOLDERS = ("runs", "lightning_logs")  # where SummaryWriter and Lightning write, unless told otherwise
OURS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # of workers that train: see engine/warm.py
TRACEBACK = "Traceback (most recent call last):"
OF_RANK = re.compile(r"^\[rank\d+\]: ?")  # which torch puts before each line of an exception, once there is a group


class ScriptRun:
    """Built from a ScriptSetup, which it does; then runs the script. `send` may be called from any thread."""

    def __init__(
        self,
        submission: ScriptSubmission,
        env: WorkerEnv,
        cache: NodeCache,
        blobs: BlobStore,
        send: Callable[[Message], None],
    ) -> None:
        self._options, self._env, self._blobs, self._send = submission.options, env, blobs, send
        self._scratch = Path(env.scratch)
        self._project = Path(env.job) / "project"
        self._unpack(cache.path(submission.project) if submission.project else None)
        self._python = python_with(submission.options.requirements, Path(env.cache) / "environments")
        self._process: subprocess.Popen[bytes] | None = None
        self._given_up = False
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
        reports, log = self._scratch / "reports", Path(self._env.log)
        environment = {name: value for name, value in os.environ.items() if name not in OURS}
        environment |= {"OMP_NUM_THREADS": str(self._options.threads), **self._options.env, **order.environment}
        environment |= {
            REPORTS_FILE: str(reports),
            "TORCHELASTIC_ERROR_FILE": str(self._scratch / "torchelastic_error.json"),
        }
        before = log.stat().st_size
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the fork server ignores it, and a child would inherit that
        events = EventFiles(self._watched()) if order.environment["RANK"] == "0" else None
        self._process = process = subprocess.Popen(self._command(), cwd=self._project, env=environment)  # noqa: S603
        ended = threading.Event()
        telling = threading.Thread(target=self._tell, args=(str(reports), events, ended), name="reports", daemon=True)
        telling.start()
        if self._given_up:
            process.terminate()
        status = process.wait()
        ended_at = time.time()
        ended.set()
        telling.join()
        if status:
            return ScriptEnded(status=status, ended_at=ended_at, error=self._failure(status, log, before))
        return ScriptEnded(status=0, ended_at=ended_at, returned=self._upload_result())

    def give_up(self) -> None:
        """Ask the script to end, and make it; called from the reading thread."""
        self._given_up = True
        if self._process is not None:
            self._process.terminate()
            threading.Timer(TERM_GRACE_S, self._process.kill).start()

    def _watched(self) -> tuple[Path, ...]:
        """Where TensorBoard's files are looked for; not in the whole project, which may be large."""
        return tuple(self._project / name for name in dict.fromkeys((self._options.outputs, *EVENT_FOLDERS)))

    def _command(self) -> list[str]:
        if self._call is None:
            return [self._python, "-u", *self._options.command]
        told = self._scratch / "call.json"
        told.write_text(self._call.model_dump_json())
        return [self._python, "-u", "-m", "paceline.training.call", str(told)]

    def _tell(self, reports: str, events: EventFiles | None, ended: threading.Event) -> None:
        """Send on what the script reports, twice a second, and once more at its end."""
        reader = ReportReader()
        with suppress(MasterGone):  # the worker ends then
            last = False
            while not last:
                last = ended.wait(REPORT_EVERY_S)
                for step, values in (events.read() if events else (None, {}), reader.read(reports)):
                    if values or step is not None:
                        self._send(Reported(step=step, values=values))

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

    def save_output(self) -> OutputSaved:
        """Upload the output folder, where there is one."""
        folder, archive = self._project / self._options.outputs, self._scratch / "output.tar"
        if not folder.is_dir():
            return OutputSaved(blob=None)
        pack_folder(folder, archive)
        return OutputSaved(blob=self._blobs.upload_file(archive), nbytes=archive.stat().st_size)


def script_error(status: int, printed: str) -> UserCodeError:
    """What went wrong, from how the script ended and what it printed last."""
    lines = [OF_RANK.sub("", line) for line in printed.rstrip().splitlines()]
    at = next((at for at in reversed(range(len(lines))) if lines[at] == TRACEBACK), None)
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
        told = "\n".join(lines[-TOLD_LINES:])
        return UserCodeError(
            f"the script was ended by signal {-status} ({name}).",
            "A process that the system kills may lack memory; `paceline logs` has what it printed.",
            traceback=told,
        )
    if at is None:
        told = "\n".join(lines[-TOLD_LINES:])
        return UserCodeError(f"the script ended with exit code {status}.", "Its last lines follow.", traceback=told)
    end = next((i for i in range(at + 1, len(lines)) if re.match(r"\S", lines[i])), len(lines) - 1)
    raised = lines[end].split(":")[0].rsplit(".", 1)[-1]
    text = "\n".join(lines[at:]) + "\n"
    return UserCodeError(f"the script raised {lines[end]}", "Its traceback follows.", type=raised, traceback=text)
