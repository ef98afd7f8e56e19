"""What the faults meet: a cluster of two nodes, and the digest that every job must end in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import paceline as pl
from paceline.testing.sabotage import Sabotage

from helpers import running_master, wait_until
from points import EPOCHS, job_of

RESULT_BOUND_S = 120.0
EndsWell = Callable[[pl.Job], pl.Result]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.Client]:
    """A client of a master with two nodes on the local engine; whatever dies there is nobody else's."""
    with running_master(tmp_path_factory.mktemp("chaos"), agents=2, cores=5) as client:
        wait_until(lambda: len(client.nodes()) == 2)
        yield client


@pytest.fixture(scope="session")
def reference(client: pl.Client) -> str:
    """The job's digest, trained by one worker without faults on another master."""
    return client.submit(job_of(1)).result(RESULT_BOUND_S).digest


@pytest.fixture
def ends_well(reference: str) -> EndsWell:
    """Waits for a job's result, which must have the reference's digest and each sample once per epoch."""

    def check(job: pl.Job) -> pl.Result:
        result = job.result(RESULT_BOUND_S)
        assert result.digest == reference
        assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
        assert len(result.ledger) == EPOCHS
        return result

    return check


@pytest.fixture
def sabotage(tmp_path: Path) -> Callable[..., Sabotage]:
    """Makes faults with folders of their own."""

    def make(**fields: object) -> Sabotage:
        folder = tmp_path / f"fault-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return Sabotage(str(folder), **fields)  # type: ignore[arg-type]

    return make
