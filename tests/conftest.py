"""The cluster that tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import paceline as pl

from helpers import wait_until

# A shell's background jobs ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def client() -> Iterator[pl.Client]:
    """A client of an embedded master with one node of eight places (and a core kept back), so that any worker count fits."""
    with pl.Client(local=True, cores=9) as client:
        wait_until(lambda: len(client.nodes()) == 1)
        yield client
