"""A job, seen from the client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.archive import unpack_folder
from paceline.client.events import ENDED, Event, follow, past
from paceline.client.result import Result
from paceline.client.returned import read_returned
from paceline.client.shards import fetch_files
from paceline.digest import model_digest
from paceline.errors import Conflict, Corrupt, JobCancelled, NotFound, PacelineError, WaitTimeout, from_json
from paceline.plan import Plan
from paceline.script import ScriptOptions
from paceline.spec import TrainOptions

if TYPE_CHECKING:
    from paceline.client.client import Client


class Job:
    """A handle: it holds no state of its own, so that any process with the id and a token has the same."""

    def __init__(self, client: Client, job_id: str, template: Any = None) -> None:
        self._client = client
        self._template = template
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def info(self) -> dict[str, Any]:
        """The job as the master's API shows it."""
        return dict(self._client.get(f"/jobs/{self.id}"))

    @property
    def state(self) -> str:
        """QUEUED, PLANNING, STARTING, RUNNING, RECOVERING, WAITING, SUCCEEDED, FAILED or CANCELLED."""
        return str(self.info()["state"])

    @property
    def plan(self) -> Plan:
        """The master's present decision; waits until there is one."""
        for _ in follow(self._client.http, self.id):
            plan = self.info()["plan"]
            if plan is not None:
                return Plan.model_validate(plan)
        self._raise_failure(self.info())
        raise WaitTimeout(f"job {self.id} ended before it was planned.")

    def events(self) -> Iterator[Event]:
        """All that happened and happens to the job, until it ends."""
        return follow(self._client.http, self.id)

    def events_so_far(self) -> list[Event]:
        """All that happened to the job until now."""
        return past(self._client.http, self.id)

    def watch(self) -> None:
        """Show progress until the job ends: evaluations, or what a script prints. A failed job does not raise here."""
        options = self.options()
        if isinstance(options, ScriptOptions):
            from paceline.client.scriptprogress import show_script

            show_script(self.events(), self.follow_logs())
        else:
            from paceline.client.progress import show

            show(self.events(), options)

    def options(self) -> TrainOptions | ScriptOptions:
        """The plain part of the job's spec."""
        found = self._client.get(f"/jobs/{self.id}/options")
        return (ScriptOptions if "command" in found else TrainOptions).model_validate(found)

    def logs(self, rank: int | None = None) -> str:
        """What the workers have printed so far, or one rank's have, each line behind `[attempt.rank]`.

        The newest of each rank up to a bound (the master's `log_bytes`); a line tells how much was left out, and where.
        """
        return "".join(text for text, _ in self._log_pages(rank))

    def follow_logs(self, rank: int | None = None) -> Iterator[str]:
        """The log in pieces as it grows, until the job and its workers have ended. rank: of this one alone."""
        offset = 0
        while True:
            ended = self.state in ENDED and not self.workers()  # a worker's last lines come before its end
            for text, end in self._log_pages(rank, offset):
                yield text
                offset = end
            if ended:
                return
            time.sleep(0.5)

    def _log_pages(self, rank: int | None, offset: int = 0) -> Iterator[tuple[str, int]]:
        """(text, the place where it ended), from a place on."""
        which: dict[str, int] = {} if rank is None else {"rank": rank}
        while True:
            page = self._client.get(f"/jobs/{self.id}/logs", offset=offset, **which)
            if not page["text"]:
                return
            offset = page["next_offset"]
            yield page["text"], offset

    def workers(self) -> list[dict[str, Any]]:
        """The live workers: `rank, node, pid, share, last_step` of each."""
        return list(self._client.get(f"/jobs/{self.id}/workers"))

    def ledger(self) -> list[dict[str, int]]:
        """Per epoch: samples `expected`, `committed`, and committed `twice`."""
        return list(self._client.get(f"/jobs/{self.id}/ledger"))

    def scale(self, workers: int) -> None:
        """Train with so many workers from the next round on, or from its start where the job waits.

        As far as nodes are free; the model stays the same. Raises Conflict where the job has ended, InvalidSpec.
        """
        self._client.post(f"/jobs/{self.id}/scale?workers={workers}")

    def cancel(self) -> None:
        """End the job without a model; a job that has ended stays as it is."""
        self._client.post(f"/jobs/{self.id}/cancel")

    def wait(self, timeout: float | None = None) -> str:
        """Wait until the job ends; return its state. timeout: seconds. Raises WaitTimeout; the job goes on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for event in follow(self._client.http, self.id, deadline):
            if event.ends_job:
                return str(event.data["state"])
        raise WaitTimeout(
            f"job {self.id} is {self.state} after {timeout} s.", "Wait longer, or reconnect with client.job(id)."
        )

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the model, fetch it, check its digest, acknowledge it. timeout: seconds for the training.

        Raises the job's own error where it failed, JobCancelled, WaitTimeout, Expired, Corrupt.
        """
        if self.wait(timeout) != "SUCCEEDED":
            self._raise_failure(self.info())
        found = self._client.get(f"/jobs/{self.id}/result")
        self.fetch(self._client.models / f"{self.id}.safetensors", found)
        return Result(
            path=Path(found["path"]),
            plan=Plan.model_validate(found["plan"]),
            _template=self._template,
            **{
                name: found[name]
                for name in (
                    "job_id", "digest", "step", "history", "stop_reason", "reproducible", "irreproducible_because",
                    "hardware_class", "versions", "ledger", "train_seconds",
                )
            },
        )  # fmt: skip

    def fetch(self, path: Path, found: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the model to `path`, checked, and acknowledge the delivery; return the result's description.

        A sharded one becomes a folder, `path` without its suffix, of safetensors files and their index; files that are
        there already are not fetched again. `found["path"]` says where it is.
        """
        found = found if found is not None else self._client.get(f"/jobs/{self.id}/result")
        files = [path]
        if found["files"]:
            path = path.with_suffix("")
            files = fetch_files(self._client.blobs, path, found)
        else:
            self._client.blobs.download(found["blob"], path)
        digest = model_digest(*files)
        if digest != found["digest"]:
            for file in files:
                file.unlink()
            raise Corrupt(f"the model has the digest {digest}, not {found['digest']}.", "Fetch it again.")
        self._client.post(f"/jobs/{self.id}/delivered?digest={digest}")
        found["path"] = str(path)
        return found

    # ---- what a script leaves ----

    def output(
        self, path: str | Path, timeout: float | None = None, *, partial: bool = False, rank: int = 0
    ) -> Path | None:
        """Wait for the script's end and fetch a rank's output folder to `path`, which must not be there yet.

        Ranks on one node share a folder. None where there is no such folder. partial: also where the script failed or
        was cancelled, as far as it had come; without it, the job's own error, or JobCancelled, is raised. Raises
        NotFound for a rank that the script did not have, and WaitTimeout.
        """
        folders, path = self._left(timeout, partial)["folders"], Path(path)
        if not 0 <= rank < len(folders):
            raise NotFound(f"job {self.id} had {len(folders)} rank(s), and no rank {rank}.", "Ranks count from 0.")
        if folders[rank] is None:
            return None
        blob = folders[rank]["blob"]
        if path.exists():
            raise Conflict(f"{path} is there already.", "Name a folder that is not.")
        archive = self._client.models / f"{self.id}.tar"
        self._client.blobs.download(blob, archive)
        unpack_folder(archive, path)
        archive.unlink()
        self._client.post(f"/jobs/{self.id}/delivered?digest={blob}")
        return path

    def returned(self, timeout: float | None = None) -> list[Any]:
        """Wait for the end of a called function; what it returned, by rank. Raises as `output` does."""
        return [self._returned(part) for part in self._left(timeout)["returned"]]

    def _left(self, timeout: float | None, partial: bool = False) -> dict[str, Any]:
        if self.wait(timeout) != "SUCCEEDED" and not partial:
            self._raise_failure(self.info())
        return dict(self._client.get(f"/jobs/{self.id}/output"))

    def _returned(self, part: dict[str, Any] | None) -> Any:
        if part is None:
            return None
        path = self._client.models / part["blob"]
        self._client.blobs.download(part["blob"], path)
        return read_returned(part["form"], path)

    def _raise_failure(self, info: dict[str, Any]) -> None:
        if info["state"] == "CANCELLED":
            raise JobCancelled(f"job {self.id} was cancelled.", "Submit it again.")
        if info["error"]:
            raise from_json(info["error"])
        if info["state"] in ("FAILED",):
            raise PacelineError(f"job {self.id} failed.", "See `paceline logs`.")
