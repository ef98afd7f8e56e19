"""Few measured pairs tell the speed of every node's own connection."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from paceline.master.ports import Pair, estimates, next_pair
from paceline.measured import Link

MBIT = st.sampled_from([6, 25, 50, 100, 1000, 10_000])


def link(ends: Pair, rate: float, at: float = 0.0, failure: str | None = None) -> Link:
    return Link(ends=ends, latency_s=0.001, bytes_per_s=rate, at=at, failure=failure)


def measure_all(ports: dict[str, float]) -> dict[Pair, Link]:
    """Measure as long as a pair is asked for, on a network where the slower end limits a pair."""
    links: dict[Pair, Link] = {}
    while (ends := next_pair(list(ports), links)) is not None:
        assert ends not in links
        links[ends] = link(ends, min(ports[end] for end in ends), at=float(len(links)))
    return links


def all_links(ports: dict[str, float]) -> tuple[dict[Pair, Link], dict[Pair, float]]:
    measured = measure_all(ports)
    found = [*measured.values(), *estimates(ports, measured)]
    assert len(found) == len({each.ends for each in found})
    return measured, {each.ends: each.bytes_per_s for each in found}


@given(st.lists(MBIT, min_size=2, max_size=14))
def test_all_pairs_are_known_by_few_and_no_estimate_is_too_high(rates: list[int]) -> None:
    ports = {f"n{number:02}": float(rate) for number, rate in enumerate(rates)}
    measured, told = all_links(ports)
    assert len(measured) <= 2 * len(ports)
    assert set(told) == set(combinations(ports, 2))
    assert all(rate <= min(ports[end] for end in ends) for ends, rate in told.items())


@given(st.lists(MBIT, min_size=2, max_size=5))
def test_of_up_to_five_nodes_every_pair_is_told_exactly(rates: list[int]) -> None:
    ports = {f"n{number}": float(rate) for number, rate in enumerate(rates)}
    assert all_links(ports)[1] == {ends: min(ports[end] for end in ends) for ends in combinations(ports, 2)}


def test_a_slow_first_node_does_not_make_the_others_look_slow() -> None:
    measured, told = all_links({"a": 6.0, "b": 1000.0, "c": 1000.0, "d": 1000.0})
    assert told["b", "d"] == told["b", "c"] == told["c", "d"] == 1000.0
    assert len(measured) <= 4


def test_one_node_has_no_link_to_measure() -> None:
    assert next_pair(["a"], {}) is None
    assert next_pair([], {}) is None


def test_links_to_nodes_that_are_not_asked_for_decide_nothing() -> None:
    others = {("c", "d"): link(("c", "d"), 1000.0)}
    assert next_pair(["a", "b"], others) == ("a", "b")


def test_who_was_not_reached_from_one_node_is_not_expected_to_be_from_another() -> None:
    links = {("a", "b"): link(("a", "b"), 1.0, failure="refused"), ("b", "c"): link(("b", "c"), 1000.0)}
    [told] = estimates(["a", "b", "c"], links)
    assert told.ends == ("a", "c")
    assert told.failure == "between a and b: refused"
    assert told.bytes_per_s == 1.0
