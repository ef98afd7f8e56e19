"""How long models are kept: 30 days until they are fetched, 7 days after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.master.lives import submission_of
from paceline.master.models import JobRow

UNDELIVERED_DAYS = 30
DELIVERED_DAYS = 7
DAY_S = 86_400.0
LONGEST_S = (UNDELIVERED_DAYS + DELIVERED_DAYS) * DAY_S  # after a job's end


def expires_at(row: JobRow) -> float | None:
    """When the job's blobs may go, in seconds since the epoch; None while it is unfinished."""
    if row.ended_at is None:
        return None
    if row.delivered_at is not None:
        return row.delivered_at + DELIVERED_DAYS * DAY_S
    return row.ended_at + UNDELIVERED_DAYS * DAY_S


def is_over(row: JobRow, now: float) -> bool:
    """Whether what the job left is kept no longer."""
    at = expires_at(row)
    return at is not None and at <= now


def expired(rows: Sequence[JobRow], now: float) -> list[JobRow]:
    """Jobs whose model is kept no longer, and is still there."""
    return [row for row in rows if is_over(row, now) and _delivers(row.delivery or {})]


def _delivers(delivery: dict[str, Any]) -> bool:
    """A script may have left something on another rank's node alone."""
    return bool(delivery.get("blob") or any(delivery.get("folders", ())))


def blobs_in_use(rows: Sequence[JobRow], now: float) -> set[str]:
    """All blobs that a job may still need; the checkpoints, as long as it may be resumed."""
    used: set[str] = set()
    for row in rows:
        if is_over(row, now):
            continue
        used.update(submission_of(row.submission).blobs)
        delivery = row.delivery or {}
        used |= {delivery["blob"]} if delivery else set()
        used |= {file["blob"] for file in delivery.get("files", ())}
        used |= {folder["blob"] for folder in delivery.get("folders", ()) if folder}
        used |= {returned["blob"] for returned in delivery.get("returned", ()) if returned}
        if row.ended_at is None:
            for checkpoint in row.checkpoints or ():
                used |= {checkpoint["ref"]["blob"], *checkpoint["ref"].get("files", ())}
    return used
