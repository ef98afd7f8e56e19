"""Emulated clusters; where this machine can't make one, the tests that need it skip and say why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paceline.testing.emulated import EmulatedCluster
from paceline.testing.hosts import HostSpec
from paceline.testing.system import EmulationUnavailable

UNEQUAL = (
    HostSpec("a", cpu=0.6, mbit=200),
    HostSpec("b", cpu=0.5, mbit=100),
    HostSpec("c", cpu=0.3, mbit=50, relayed=True),
)


@pytest.fixture(scope="session")
def emulated() -> Iterator[EmulatedCluster]:
    """Three hosts of unequal speed behind links of unequal width; each test leaves all of them in place."""
    try:
        with EmulatedCluster(UNEQUAL) as cluster:
            yield cluster
    except EmulationUnavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def whole(emulated: EmulatedCluster) -> Iterator[EmulatedCluster]:
    """The same, made whole again after the test, whatever it did."""
    yield emulated
    for name in emulated.names:
        emulated.heal(name)
    for relay in emulated.relays.values():
        relay.restore()
        relay.delay_s, relay.mbit = 0.0, None
    emulated.wait_for(*emulated.names)
