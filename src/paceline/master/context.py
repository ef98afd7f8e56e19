"""What the routes work with, and who may call them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from paceline.errors import Forbidden, Unauthorized
from paceline.master.artifacts import Blobs
from paceline.master.cluster import Cluster
from paceline.master.controller import Controller
from paceline.master.feed import Feed
from paceline.master.logs import Logs
from paceline.master.models import JobRow
from paceline.master.store import Store
from paceline.spec import Versions


@dataclass
class Master:
    """One master's parts."""

    store: Store
    blobs: Blobs
    cluster: Cluster
    feed: Feed
    controller: Controller
    logs: Logs
    versions: Versions


def master_of(connection: HTTPConnection) -> Master:
    master: Master = connection.app.state.master
    return master


The = Annotated[Master, Depends(master_of)]


def bearer(connection: HTTPConnection) -> str:
    """The request's token. Raises Unauthorized."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("the request carries no token.", "Give token=, or run `paceline login`.")
    return token


@dataclass(frozen=True)
class Caller:
    """role: "admin", who may do what a client may, "client", "node", or "worker" for a live worker's secret."""

    role: str
    user: str

    def owns(self, job: JobRow) -> bool:
        """Whether the job is this user's to read and to end; all are the admin's."""
        return self.role == "admin" or (self.role == "client" and self.user == job.user)


def caller_of(master: Master, token: str) -> Caller:
    """Raises Unauthorized."""
    if master.cluster.opens(token):
        return Caller("worker", "")
    known = master.store.token(token)
    if known is None:
        raise Unauthorized(
            "the master does not know this token, or it is revoked.",
            "Use the one that `paceline up` printed, or ask the master's admin for one (`paceline tokens --add`).",
        )
    return Caller(known.role, known.user)


def _caller(connection: HTTPConnection) -> Caller:
    return caller_of(master_of(connection), bearer(connection))


TheCaller = Annotated[Caller, Depends(_caller)]  # looked up once a request


def allow(*roles: str) -> Any:
    """A dependency that lets these roles pass."""

    def check(caller: TheCaller) -> None:
        if caller.role not in roles and not (caller.role == "admin" and "client" in roles):
            takes = f"a {caller.role} token may not do this; it takes: {', '.join(roles)}."
            raise Forbidden(takes, "Use such a token.")

    return Depends(check)


def _own_job(master: The, caller: TheCaller, job_id: str) -> JobRow:
    row = master.store.job(job_id)
    if not caller.owns(row):
        raise Forbidden(
            f"job {job_id} is {row.user}'s, and this token is {caller.user}'s.",
            f"Ask {row.user}, or the master's admin; `paceline jobs` shows whose each job is.",
            owner=row.user,
        )
    return row


# The job of the path's job_id. Whatever is one job's takes it, and so is for its owner and the admin alone.
TheJob = Annotated[JobRow, Depends(_own_job)]
