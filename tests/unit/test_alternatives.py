"""What benchmarks/planner_regret.py compares, and how it counts."""

from __future__ import annotations

import pytest
from _alternatives import CASES, CLUSTERS, MODELS, Outcome, alternatives, seconds_per_step


def test_equal_nodes_are_tried_once_for_each_number_of_them() -> None:
    assert alternatives(CLUSTERS["two, unshaped"]) == [("a",), ("a", "b")]
    assert [len(nodes) for nodes in alternatives(CLUSTERS["four, 100 Mbit/s"])] == [1, 2, 3, 4]


def test_of_three_unequal_nodes_every_kind_of_subset_is_tried_and_of_six_the_fastest_and_the_slowest_few() -> None:
    assert alternatives(CLUSTERS["three unequal, 200 Mbit/s"]) == [
        ("a",), ("b",), ("a", "b"), ("b", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    tried = alternatives(CLUSTERS["six unequal, 50 Mbit/s"])
    assert [len(nodes) for nodes in tried] == [1, 1, 2, 3, 3, 4, 5, 6]
    assert ("a", "b", "c") in tried


def test_every_case_names_a_cluster_and_a_model_and_quotas_leave_some_of_two_cores() -> None:
    assert all(case.cluster in CLUSTERS and case.model in MODELS for case in CASES)
    assert all(sum(host.cpu or 2.0 for host in hosts) <= 1.6 for hosts in CLUSTERS.values())


def test_a_rate_is_taken_from_commits_after_the_first_seconds() -> None:
    commits = [(10.0, 1), (12.0, 2), (13.0, 8), (14.0, 12), (15.0, 16)]
    assert seconds_per_step(commits, 3.0) == pytest.approx(0.25)
    assert seconds_per_step(commits, 5.0) is None


def test_regret_is_by_the_medians_and_what_the_repeats_span_is_taken_off() -> None:
    outcome = Outcome(CASES[0], alternatives={("a",): [1.0, 1.0, 1.2], ("a", "b"): [2.0, 2.0, 2.0]})
    outcome.chosen = [1.2, 1.2, 1.2]
    outcome.foreseen = [[(1.5, 1.2), (1.1, 1.2)], [(1.2, 1.2)], [(1.2, 1.2)]]
    assert outcome.best == outcome.best_single == ("a",)
    assert outcome.regret(outcome.best) == pytest.approx(0.2)
    assert outcome.beyond_spread(outcome.best) == pytest.approx(0.1)
    assert outcome.beyond_spread(("a", "b")) == 0.0
    assert outcome.prediction_error == pytest.approx(0.25)
