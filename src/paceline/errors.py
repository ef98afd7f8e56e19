"""Every error a user can meet: what happened, in numbers, and what to do about it.

One tree, one table: the class gives the stable `code`, the HTTP status the master answers with, and the exit
code of the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PacelineError(Exception):
    """Base of all errors. `fact` says what happened, `remedy` what the user can do, `details` holds numbers."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, remedy: str = "", **details: Any) -> None:
        self.fact = fact
        self.remedy = remedy
        self.details = details
        super().__init__(f"{fact} {remedy}".strip())

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "fact": self.fact, "remedy": self.remedy, "details": self.details}


class InvalidSpec(PacelineError):
    """A field of the spec, or the data, can't be trained on."""

    code, http_status, exit_code = "invalid_spec", 422, 2


class NotYetSupported(PacelineError):
    """A field of the contract whose part is not built yet."""

    code, http_status, exit_code = "not_yet_supported", 422, 2


class Unpicklable(PacelineError):
    """Something in the spec can't travel to a worker; the path names it."""

    code, http_status, exit_code = "unpicklable", 422, 2


class Unauthorized(PacelineError):
    """No token, or one that the master does not know."""

    code, http_status, exit_code = "unauthorized", 401, 3


class Forbidden(PacelineError):
    """A known token that does not allow this: another role's, or the job is another user's."""

    code, http_status, exit_code = "forbidden", 403, 3


class NotFound(PacelineError):
    """No such job, file or node."""

    code, http_status, exit_code = "not_found", 404, 4


class MasterUnreachable(PacelineError):
    """Nothing answers at the master's address."""

    code, http_status, exit_code = "master_unreachable", 503, 5


class Unplaceable(PacelineError):
    """No set of nodes can hold the job: what it needs, what there is, what to change."""

    code, http_status, exit_code = "unplaceable", 409, 6


class VersionMismatch(PacelineError):
    """Python, torch or Paceline differ between two ends in a way that changes results or breaks code."""

    code, http_status, exit_code = "version_mismatch", 409, 7


class UserCodeError(PacelineError):
    """The user's own code raised; `traceback` is theirs."""

    code, http_status, exit_code = "user_code", 422, 8

    @property
    def traceback(self) -> str:
        return str(self.details.get("traceback", ""))

    def __str__(self) -> str:
        return f"{super().__str__()}\n\n{self.traceback}".rstrip()


class NonFinite(PacelineError):
    """The loss or a gradient became NaN or infinite; names step, samples and layer."""

    code, http_status, exit_code = "non_finite", 422, 9


class DataMismatch(PacelineError):
    """Workers built different data from the same spec; names the nodes."""

    code, http_status, exit_code = "data_mismatch", 409, 10


class JobFailed(PacelineError):
    """The job ended without a model, and not by the user's code."""

    code, http_status, exit_code = "job_failed", 500, 11


class JobCancelled(PacelineError):
    """Someone cancelled the job; there is no model."""

    code, http_status, exit_code = "cancelled", 409, 12


class Corrupt(PacelineError):
    """Bytes do not match their digest: a torn upload, a damaged file."""

    code, http_status, exit_code = "corrupt", 422, 13


class DiskFull(PacelineError):
    """No room to store something; nothing half-written is left behind."""

    code, http_status, exit_code = "disk_full", 507, 14


class FolderInUse(PacelineError):
    """Another master already works in this folder."""

    code, http_status, exit_code = "folder_in_use", 409, 15


class Expired(PacelineError):
    """The model was kept for the documented time and is gone."""

    code, http_status, exit_code = "expired", 410, 16


class ModelUnknown(PacelineError):
    """This process knows neither the module nor its builder."""

    code, http_status, exit_code = "model_unknown", 409, 17


class WaitTimeout(PacelineError):
    """The wait ended before the job did; the job goes on."""

    code, http_status, exit_code = "wait_timeout", 504, 18


class ProtocolError(PacelineError):
    """A message that the other end should not have sent."""

    code, http_status, exit_code = "protocol", 400, 19


class Conflict(PacelineError):
    """The job's state does not allow this."""

    code, http_status, exit_code = "conflict", 409, 20


class DataUnreachable(PacelineError):
    """A shard can't be read over the network, after several attempts."""

    code, http_status, exit_code = "data_unreachable", 502, 25


def all_errors() -> list[type[PacelineError]]:
    """The tree, flat, in the order of this file."""
    return [PacelineError, *PacelineError.__subclasses__()]


def from_json(body: dict[str, Any]) -> PacelineError:
    """Rebuild the error that `to_json` described; an unknown code becomes a plain `PacelineError`."""
    kinds = {kind.code: kind for kind in all_errors()}
    kind = kinds.get(str(body.get("code")), PacelineError)
    return kind(str(body.get("fact", "unknown error")), str(body.get("remedy", "")), **dict(body.get("details") or {}))
