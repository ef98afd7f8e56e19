"""The cluster that tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline as pl

from helpers import running_master, wait_until

# A shell's background jobs ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def client() -> Iterator[pl.Client]:
    """A client of an embedded master with one node of eight places (and a core kept back), so that any worker count fits."""
    with pl.Client(local=True, cores=9) as client:
        wait_until(lambda: len(client.nodes()) == 1)
        yield client


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.Client]:
    """A client of a master with two nodes on the local engine, whose processes tests may kill."""
    with running_master(tmp_path_factory.mktemp("local"), agents=2, cores=4) as client:
        wait_until(lambda: len(client.nodes()) == 2)
        yield client


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """As long as this file is there, a `Rested` model that is held by it takes its time."""
    file = tmp_path / "held"
    file.touch()
    return file
