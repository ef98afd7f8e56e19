"""Waiting for an exchange: late is not failed."""

from __future__ import annotations

import threading

import pytest
import torch

from paceline.messages.to_worker import Group
from paceline.training.group import LostPeer, WorkerGroup
from paceline.training.monitor import Monitor


class Exchange:
    """A collective whose first wait is late; it completes right after, well or with `failure`."""

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure
        self.waits = 0

    def wait(self, timeout: object = None) -> None:
        self.waits += 1
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")
        if self.failure:
            raise RuntimeError(self.failure)

    def is_completed(self) -> bool:
        return True


@pytest.fixture
def group() -> WorkerGroup:
    alone = Group(key="0", members=(0,), shares=((0, 8),), host="127.0.0.1", port=0)
    return WorkerGroup(alone, 0, torch.device("cpu"), Monitor(), threading.Event())


def test_an_exchange_that_completes_just_after_a_late_wait_is_not_a_lost_peer(group: WorkerGroup) -> None:
    exchange = Exchange()
    with group._exchange():
        group._wait(exchange)
    assert exchange.waits == 2


def test_an_exchange_that_failed_is_a_lost_peer_with_its_reason(group: WorkerGroup) -> None:
    with pytest.raises(LostPeer, match="Connection closed by peer"), group._exchange():
        group._wait(Exchange("Connection closed by peer"))
