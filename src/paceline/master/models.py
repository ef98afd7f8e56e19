"""The store's tables. Every change of them is a migration in `migrations/`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Double, ForeignKey, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
        float: Double,
        str: Text,
    }


class JobRow(Base):
    """One submitted job. submission, plan, training, checkpoints (newest first), delivery: the models' JSON.

    wish: how many workers the user asked for since it was submitted. hardware_class: of the first attempt. user: whose
    token submitted it.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str | None]
    priority: Mapped[int]
    submission: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int]
    elapsed_s: Mapped[float]
    plan: Mapped[dict[str, Any] | None]
    training: Mapped[dict[str, Any]]
    checkpoints: Mapped[list[dict[str, Any]] | None]
    delivery: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[float]
    ended_at: Mapped[float | None]
    delivered_at: Mapped[float | None]
    wish: Mapped[int | None]
    hardware_class: Mapped[str | None]
    user: Mapped[str]


class EventRow(Base):
    """One thing that happened to a job, in the order of `seq`."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_seq", "job_id", "seq"),)

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    at: Mapped[float]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]


class CommitRow(Base):
    """The ledger: steps [from_step, to_step) and how many samples they consumed. `undone` after a roll-back."""

    __tablename__ = "commits"
    __table_args__ = (Index("ix_commits_job", "job_id", "from_step"),)

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    from_step: Mapped[int]
    to_step: Mapped[int]
    samples: Mapped[int]
    undone: Mapped[bool] = mapped_column(default=False)


class TokenRow(Base):
    """An access token, by its sha256. role: "admin" (a client, too), "client" or "node". user: whom it stands for."""

    __tablename__ = "tokens"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    created_at: Mapped[float]
    user: Mapped[str]
