"""How long models and what jobs were made of are kept."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.master.models import JobRow
from paceline.master.retention import DAY_S, DELIVERED_DAYS, UNDELIVERED_DAYS, blobs_in_use, expired, expires_at

from builders import submission

INPUTS = {letter * 64 for letter in "abcd"}


def row(**changes: Any) -> JobRow:
    """A job that ended at 1000 with a model and a checkpoint."""
    fields: dict[str, Any] = {
        "id": "job",
        "submission": submission().model_dump(mode="json"),
        "ended_at": 1000.0,
        "delivered_at": None,
        "delivery": {"blob": "model"},
        "checkpoints": [{"ref": {"blob": "newest"}}, {"ref": {"blob": "before"}}],
    }
    return JobRow(**{**fields, **changes})


@pytest.mark.parametrize(
    ("ended", "delivered", "expiry"),
    [
        (None, None, None),
        (1000.0, None, 1000.0 + UNDELIVERED_DAYS * DAY_S),
        (1000.0, 5000.0, 5000.0 + DELIVERED_DAYS * DAY_S),
    ],
)
def test_a_model_is_kept_longer_until_it_is_delivered(
    ended: float | None, delivered: float | None, expiry: float | None
) -> None:
    assert expires_at(row(ended_at=ended, delivered_at=delivered)) == expiry


def test_the_documented_times_are_thirty_days_and_seven() -> None:
    assert (UNDELIVERED_DAYS, DELIVERED_DAYS, DAY_S) == (30, 7, 86_400)


def test_a_model_expires_at_its_time_and_once() -> None:
    kept, gone = row(id="kept"), row(id="forgotten", delivery={"blob": ""})
    running, failed = row(id="running", ended_at=None, delivery=None), row(id="failed", delivery=None)
    at = 1000.0 + UNDELIVERED_DAYS * DAY_S
    rows = [kept, gone, running, failed]
    assert expired(rows, at - 1) == []
    assert [found.id for found in expired(rows, at)] == ["kept"]


def test_an_unfinished_job_keeps_its_inputs_and_checkpoints_for_ever() -> None:
    assert blobs_in_use([row(ended_at=None, delivery=None)], now=1e12) == {*INPUTS, "newest", "before"}
    assert blobs_in_use([row(ended_at=None, delivery=None, checkpoints=None)], now=1e12) == INPUTS


def test_a_finished_job_keeps_its_model_and_inputs_until_it_expires_and_then_nothing() -> None:
    at = 1000.0 + UNDELIVERED_DAYS * DAY_S
    assert blobs_in_use([row()], at - 1) == {*INPUTS, "model"}
    assert blobs_in_use([row()], at) == set()


def test_the_output_of_every_node_of_a_script_is_kept_until_it_expires() -> None:
    left = {"blob": "", "folders": [None, {"blob": "of rank 1"}]}
    at = 1000.0 + UNDELIVERED_DAYS * DAY_S
    assert "of rank 1" in blobs_in_use([row(delivery=left)], at - 1)
    assert [found.id for found in expired([row(delivery=left)], at)] == ["job"]
    assert expired([row(delivery={"blob": "", "folders": []})], at) == []


def test_a_blob_that_another_job_needs_stays() -> None:
    at = 1000.0 + UNDELIVERED_DAYS * DAY_S
    assert blobs_in_use([row(), row(id="next", ended_at=None, delivery=None)], at) == {*INPUTS, "newest", "before"}
