"""What `job.watch()` shows: a line for what a user would want to know, as it is."""

from __future__ import annotations

from typing import Any

import pytest

import paceline as pl
from paceline.client.events import Event
from paceline.client.progress import show

from builders import options


def shown(screen: pytest.CaptureFixture[str], kind: str, **data: Any) -> str:
    """What a job's watcher sees of this event."""
    show([Event(kind, data), Event("state", {"state": "SUCCEEDED"})], options(stop=pl.MaxEpochs(3)))
    return screen.readouterr().out.strip()


@pytest.mark.parametrize(
    ("kind", "label"),
    [("worker_lost", "lost"), ("corrected", "changed"), ("node_quarantined", "removed"), ("preempted", "waits")],
)
def test_a_change_of_the_workers_is_shown_with_its_reason_as_it_is(
    capsys: pytest.CaptureFixture[str], kind: str, label: str
) -> None:
    assert (
        shown(capsys, kind, reason="rank 1 on [/n1] is lost: signal 9")
        == f"{label:<9}rank 1 on [/n1] is lost: signal 9"
    )


def test_a_worker_that_joins_is_shown_with_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "worker_joined", rank=2, node="n2") == "joined   rank 2 on n2"


def test_an_evaluation_is_shown_with_all_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    line = shown(capsys, "evaluated", step=20, epoch=2.0, samples=640, loss=0.5, val_loss=0.25, at=1.0)
    assert line == "epoch 2.00    loss 0.5000  val_loss 0.2500"
