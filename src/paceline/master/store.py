"""The durable state: SQLAlchemy on SQLite (WAL). A job's change, its events and its commits are one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, delete, event, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from paceline.errors import DiskFull, NotFound, PacelineError
from paceline.master.commands import Commit, Learn, Record, RollBack
from paceline.master.job import Job
from paceline.master.models import CommitRow, EventRow, JobRow, ProfileRow, TokenRow
from paceline.master.scriptstates import ScriptJob
from paceline.master.states import TERMINAL, Cancelled, Failed, Succeeded
from paceline.measured import Profile
from paceline.plan import Plan
from paceline.script import ScriptSubmission
from paceline.spec import Submission

HEAD = "0006"
ADMIN = "admin"  # the user of the folder's own tokens


class Store:
    """Thread-safe; every method is one transaction. Raises DiskFull where the disk has no room."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _tune_sqlite)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        with self._engine.begin() as connection:
            migrate(connection)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """One transaction. Raises DiskFull, and PacelineError where the database fails otherwise."""
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, TimeoutError) as error:
            raise _told(error) from error

    # ---- jobs ----

    def add_job(
        self, job_id: str, submission: Submission | ScriptSubmission, now: float, user: str = ADMIN
    ) -> tuple[JobRow, bool]:
        """Store a submission; (row, whether it is new). The same request id gives the same job."""
        options = submission.options
        row = JobRow(
            id=job_id,
            request_id=submission.request_id,
            name=options.name,
            priority=options.priority,
            submission=submission.model_dump(mode="json"),
            state="QUEUED",
            attempt=0,
            elapsed_s=0.0,
            training={},
            checkpoints=[],
            created_at=now,
            user=user,
        )
        try:
            with self._writing() as session:
                session.add(row)
                session.flush()
                session.add(EventRow(job_id=job_id, at=now, kind="state", data={"state": "QUEUED", "attempt": 0}))
        except IntegrityError:
            known = self.job_of_request(submission.request_id)
            if known is None:
                raise
            return known, False
        return row, True

    def job_of_request(self, request_id: str) -> JobRow | None:
        with self._sessions() as session:
            return session.scalar(select(JobRow).where(JobRow.request_id == request_id))

    def save(
        self, job: Job | ScriptJob, plan: Plan | None, records: Sequence[Record | Commit | RollBack | Learn], now: float
    ) -> list[EventRow]:
        """Write the job's state with what happened; return the event rows, numbered."""
        events = [EventRow(job_id=job.id, at=now, kind=r.kind, data=r.data) for r in records if isinstance(r, Record)]
        with self._writing() as session:
            session.execute(update(JobRow).where(JobRow.id == job.id).values(**_columns(job, plan, now)))
            for record in records:
                _write(session, job.id, record, now)
            session.add_all(events)
        return events

    def job(self, job_id: str) -> JobRow:
        """Raises NotFound."""
        with self._sessions() as session:
            row = session.get(JobRow, job_id)
        if row is None:
            raise NotFound(f"there is no job {job_id!r}.", "`paceline jobs` lists them.")
        return row

    def jobs(self, ended_after: float = 0.0) -> list[JobRow]:
        """Newest first; of those that have ended, the ones that did so after that time."""
        recent = JobRow.ended_at.is_(None) | (JobRow.ended_at > ended_after)
        with self._sessions() as session:
            return list(session.scalars(select(JobRow).where(recent).order_by(JobRow.created_at.desc())))

    def unfinished(self) -> list[JobRow]:
        """Oldest first."""
        names = [kind.__name__.upper() for kind in TERMINAL]
        with self._sessions() as session:
            return list(session.scalars(select(JobRow).where(JobRow.state.not_in(names)).order_by(JobRow.created_at)))

    def events(self, job_id: str, after: int) -> list[EventRow]:
        with self._sessions() as session:
            query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after).order_by(EventRow.seq)
            return list(session.scalars(query))

    def commits(self, job_id: str) -> list[CommitRow]:
        """The ledger's valid entries, in step order."""
        with self._sessions() as session:
            query = select(CommitRow).where(CommitRow.job_id == job_id, CommitRow.undone.is_(False))
            return list(session.scalars(query.order_by(CommitRow.from_step)))

    def mark_delivered(self, job_id: str, now: float) -> None:
        with self._writing() as session:
            session.execute(
                update(JobRow).where(JobRow.id == job_id, JobRow.delivered_at.is_(None)).values(delivered_at=now)
            )

    def forget_model(self, job_id: str) -> None:
        """The model's retention is over: its delivery keeps everything but the blob."""
        row = self.job(job_id)
        with self._writing() as session:
            kept = {**(row.delivery or {}), "blob": ""}
            kept |= {"folders": []} if "folders" in kept else {}
            session.execute(update(JobRow).where(JobRow.id == job_id).values(delivery=kept, checkpoints=[]))

    # ---- what was learned ----

    def profiles(self) -> list[tuple[str, Profile]]:
        """All that is known of kinds of jobs: (kind, profile)."""
        with self._sessions() as session:
            return [(row.kind, Profile.model_validate(row.profile)) for row in session.scalars(select(ProfileRow))]

    # ---- tokens ----

    def add_token(self, token: str, role: str, now: float, user: str = ADMIN) -> None:
        with self._writing() as session:
            session.merge(TokenRow(sha256=_hash(token), role=role, created_at=now, user=user))

    def own_tokens(self, admin: str, node: str, now: float) -> None:
        """Let these be the master's own, in the place of any former ones."""
        self.revoke_tokens(ADMIN)
        self.add_token(admin, "admin", now)
        self.add_token(node, "node", now)

    def token(self, token: str) -> TokenRow | None:
        """Whose it is; None where it was never made, or is revoked."""
        with self._sessions() as session:
            return session.get(TokenRow, _hash(token))

    def tokens(self) -> list[TokenRow]:
        """Oldest first."""
        with self._sessions() as session:
            return list(session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.sha256)))

    def revoke_tokens(self, user: str) -> int:
        """Forget all tokens of a user; how many there were."""
        with self._writing() as session:
            gone = session.execute(delete(TokenRow).where(TokenRow.user == user).returning(TokenRow.sha256))
            return len(gone.all())


def _columns(job: Job | ScriptJob, plan: Plan | None, now: float) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "state": job.state_name,
        "attempt": job.attempt,
        "elapsed_s": job.elapsed_s,
        "training": job.training.model_dump(mode="json"),
    }
    if isinstance(job, Job):
        columns |= {
            "wish": job.wish,
            "hardware_class": job.hardware_class,
            "checkpoints": [checkpoint.model_dump(mode="json") for checkpoint in job.checkpoints],
        }
    if plan is not None:
        columns["plan"] = plan.model_dump(mode="json")
    if isinstance(job.state, TERMINAL):
        columns["ended_at"] = now
    if isinstance(job.state, Succeeded):
        columns["delivery"] = job.state.delivery.model_dump(mode="json")
    if isinstance(job.state, Failed):
        columns["error"] = job.state.error
    if isinstance(job.state, Failed | Cancelled) and job.state.output is not None:
        columns["delivery"] = job.state.output.model_dump(mode="json")
    return columns


def _write(session: Session, job_id: str, record: Record | Commit | RollBack | Learn, now: float) -> None:
    """The ledger's entries, and what was learned."""
    if isinstance(record, Commit):
        session.add(
            CommitRow(
                job_id=job_id,
                attempt=record.attempt,
                from_step=record.from_step,
                to_step=record.to_step,
                samples=record.samples,
            )
        )
    elif isinstance(record, RollBack):
        later = (CommitRow.job_id == job_id) & (CommitRow.from_step >= record.step)
        session.execute(update(CommitRow).where(later).values(undone=True))
    elif isinstance(record, Learn):
        profile = record.profile
        session.merge(
            ProfileRow(
                kind=record.kind,
                hardware_class=profile.hardware_class,
                device=profile.device,
                profile=profile.model_dump(mode="json") | {"at": now},
            )
        )


def _tune_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def migrate(connection: Connection, version: str = HEAD) -> None:
    """Bring the schema to a version. Alembic is loaded only when there is something to do: it costs a start 0.3 s."""
    known = inspect(connection).has_table("alembic_version")
    if known and connection.scalar(text("SELECT version_num FROM alembic_version")) == version:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def _told(error: OperationalError | TimeoutError) -> PacelineError:
    cause = error.orig if isinstance(error, OperationalError) else error
    if "disk is full" in str(cause):
        return DiskFull("the master's disk is full; its database can't be written.", "Free some space and try again.")
    return PacelineError(f"the master's database failed: {cause}.", "See the master's log.")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
