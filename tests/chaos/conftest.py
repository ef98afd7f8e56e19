"""What the faults meet: a cluster of two nodes, and the digest that every job must end in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import paceline as pl
from paceline.testing.faults import Fault, FaultPlan
from paceline.testing.sabotage import Sabotage

from points import EPOCHS, job_of

RESULT_BOUND_S = 150.0
EndsWell = Callable[[pl.Job], pl.Result]
Inflict = Callable[[FaultPlan, pl.Job], list[Fault]]
FAULTS = pytest.StashKey[list[int]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(FAULTS, [])
    if counts:
        terminalreporter.write_line(f"chaos: {sum(counts)} faults struck in {len(counts)} tests")


@pytest.fixture
def count_faults(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Adds to what the run's last lines tell."""
    return request.config.stash.setdefault(FAULTS, []).append


@pytest.fixture(scope="session")
def cluster(local_cluster: pl.Client) -> pl.Client:
    """Two nodes; a test leaves both of them there."""
    return local_cluster


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
def sabotage(tmp_path: Path, count_faults: Callable[[int], None]) -> Iterator[Callable[..., Sabotage]]:
    """Makes faults with folders of their own."""
    made: list[Sabotage] = []

    def make(**fields: object) -> Sabotage:
        folder = tmp_path / f"fault-{len(made)}"
        folder.mkdir()
        made.append(Sabotage(str(folder), **fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    count_faults(sum(fault.struck() for fault in made))


@pytest.fixture
def inflict(count_faults: Callable[[int], None]) -> Inflict:
    """Runs a plan against a job; returns, and prints, what hit."""

    def run(plan: FaultPlan, job: pl.Job) -> list[Fault]:
        hit = plan.run(job)
        print(*hit, sep="\n")
        count_faults(len(hit))
        return hit

    return run
