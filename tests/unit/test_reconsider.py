"""Whether a job would be faster on other nodes: only clear gains count, and every answer has its numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.measured import Link, Measured
from paceline.planner.predict import Slot
from paceline.planner.profiles import Workload
from paceline.planner.reconsider import (
    Add,
    Course,
    Drop,
    Keep,
    Member,
    predicted_step_s,
    reconsider,
    stragglers,
    worth_adding,
)
from paceline.spec import Facts

from builders import node, options

MB = 10**6


def member(rank: int, cell_s: float, rest_s: float = 0.001) -> Member:
    return Member(rank, Slot(node(f"n{rank}"), "cpu"), cell_s, rest_s)


def course(
    members: tuple[Member, ...],
    exchange_s: float = 0.0,
    gradient_bytes: int = MB,
    cells: int = 8,
    steps_to_go: float = 1000.0,
    links: tuple[Link, ...] = (),
) -> Course:
    """One that goes as the present members would make it go by their own times."""
    work = Workload(
        options(batch_size=cells, microbatches=cells),
        Facts(parameters=gradient_bytes // 4, parameter_bytes=gradient_bytes),
        Measured(links=links),
    )
    made = Course(work, members, 1.0, exchange_s, 0.5, steps_to_go)
    return replace(made, step_s=predicted_step_s(made, members))


seconds = st.floats(0.001, 1.0)
workers = st.lists(st.tuples(seconds, st.floats(0.0, 0.1)), min_size=1, max_size=6)


@st.composite
def courses(draw: st.DrawFn) -> Course:
    members = tuple(member(rank, cell_s, rest_s) for rank, (cell_s, rest_s) in enumerate(draw(workers)))
    exchange_s = draw(st.floats(0.0, 2.0)) if len(members) > 1 else 0.0
    bytes_sent = draw(st.integers(1, 100)) * MB
    return course(members, exchange_s, bytes_sent, draw(st.integers(6, 12)), draw(st.integers(0, 5000)))


def cells_of(course: Course) -> int:
    return course.work.options.microbatches


def bytes_of(course: Course) -> int:
    return course.work.facts.parameter_bytes or 0


def least_working_s(members: tuple[Member, ...], cells: int) -> float:
    """The least time of all splits, found by trying them."""
    best = float("inf")
    for cuts in combinations_with_replacement(range(cells + 1), len(members) - 1):
        edges = (0, *cuts, cells)
        sizes = [end - first for first, end in zip(edges, edges[1:], strict=False)]
        best = min(best, max(n * m.cell_s + m.rest_s for n, m in zip(sizes, members, strict=True)))
    return best


@given(courses())
def test_somebody_always_goes_on_and_a_change_is_clearly_faster_and_wins_back_what_it_costs(now: Course) -> None:
    decision = reconsider(now)
    if isinstance(decision, Keep):
        return
    ranks = {member.rank for member in now.members}
    assert set(decision.ranks) < ranks
    assert decision.gain.predicted_step_s < 0.9 * now.step_s * (1 + 1e-9)
    won_back_s = (now.step_s - decision.gain.predicted_step_s) * now.steps_to_go
    assert won_back_s > 2 * now.change_s * (1 - 1e-9)
    staying = tuple(member for member in now.members if member.rank not in decision.ranks)
    assert least_working_s(staying, cells_of(now)) < now.step_s


@given(courses(), seconds)
def test_a_node_that_would_make_the_step_longer_is_never_taken(now: Course, cell_s: float) -> None:
    newcomer = member(99, cell_s)
    decision = worth_adding(now, newcomer)
    if isinstance(decision, Add):
        assert predicted_step_s(now, (*now.members, newcomer)) < 0.9 * now.step_s
        assert least_working_s((*now.members, newcomer), cells_of(now)) < now.step_s


@given(courses())
def test_who_has_just_been_left_out_is_not_found_worth_taking_by_the_same_measures(now: Course) -> None:
    decision = reconsider(now)
    if not isinstance(decision, Drop) or len(decision.ranks) > 1:
        return
    [left] = [member for member in now.members if member.rank in decision.ranks]
    staying = tuple(member for member in now.members if member is not left)
    then = replace(course(staying, 0.0, bytes_of(now), cells_of(now)), steps_to_go=now.steps_to_go)
    exchange_s = decision.gain.predicted_step_s - then.step_s
    then = replace(then, exchange_s=exchange_s if len(staying) > 1 else 0.0, step_s=decision.gain.predicted_step_s)
    if len(staying) > 1:  # what a lone worker's exchange with another takes, it has not measured
        assert isinstance(worth_adding(then, left), Keep)


@given(courses(), st.data())
def test_measures_that_are_off_by_a_few_percent_bring_no_change_where_none_is_due(
    now: Course, data: st.DataObject
) -> None:
    best = (
        min(predicted_step_s(now, [member for member in now.members if member is not left]) for left in now.members)
        if len(now.members) > 1
        else now.step_s
    )
    if len(now.members) > 2 or best < now.step_s:
        return
    noise = st.floats(0.97, 1.03)
    noisy = tuple(
        replace(m, cell_s=m.cell_s * data.draw(noise), rest_s=m.rest_s * data.draw(noise)) for m in now.members
    )
    assert isinstance(reconsider(replace(now, members=noisy)), Keep)


def test_where_the_exchange_outweighs_the_work_one_worker_goes_on_and_the_reason_has_the_numbers() -> None:
    now = course(tuple(member(rank, 0.01) for rank in range(3)), exchange_s=1.0)
    decision = reconsider(now)
    assert isinstance(decision, Drop)
    assert len(decision.ranks) == 2
    assert re.search(
        r"without rank \d on n\d, rank \d on n\d a step is predicted to take 0\.08\d* s instead of 1\.0\d* s, which saves "
        r"9\d\d s over the 1000 steps to go, 0\.5 s for the change deducted",
        decision.reason,
    )


def test_a_worker_that_only_holds_the_others_up_is_left_out() -> None:
    now = course((member(0, 0.05), member(1, 0.05), member(2, 0.5, rest_s=0.4)), exchange_s=0.02)
    decision = reconsider(now)
    assert isinstance(decision, Drop)
    assert decision.ranks == (2,)


def test_the_node_at_the_narrow_link_is_left_out_where_links_are_known() -> None:
    wide, narrow = 1e9, 1e6
    links = tuple(
        Link(ends=ends, latency_s=1e-4, bytes_per_s=narrow if "n1" in ends else wide, at=0.0)
        for ends in (("n0", "n1"), ("n0", "n2"), ("n1", "n2"))
    )
    now = course(tuple(member(rank, 0.05) for rank in range(3)), exchange_s=1.5, links=links)
    decision = reconsider(now)
    assert isinstance(decision, Drop)
    assert decision.ranks == (1,)


@pytest.mark.parametrize("steps_to_go", [0, 3])
def test_nothing_changes_where_too_few_steps_are_left_to_win_back_its_cost(steps_to_go: int) -> None:
    now = course((member(0, 0.01), member(1, 0.01)), exchange_s=0.3, steps_to_go=steps_to_go)
    assert isinstance(reconsider(now), Keep)
    assert isinstance(reconsider(replace(now, steps_to_go=1000)), Drop)


def test_an_equal_worker_is_taken_where_exchanging_costs_little_and_not_where_it_costs_much() -> None:
    alone = course((member(0, 0.05),), gradient_bytes=MB)
    assert isinstance(worth_adding(alone, member(1, 0.05)), Add)
    assert isinstance(worth_adding(course((member(0, 0.05),), gradient_bytes=1000 * MB), member(1, 0.05)), Keep)


def test_a_straggler_is_named_with_its_time_the_others_median_and_what_it_costs() -> None:
    now = course((member(0, 0.04), member(1, 0.04), member(2, 0.12)), exchange_s=0.01)
    [found] = stragglers(now)
    assert (found.member.rank, found.others_cell_s) == (2, 0.04)
    assert found.costs_s == pytest.approx(0.16 - 0.12)  # 4, 3 and 1 microbatches; all alike, 3, 3 and 2
    assert found.reason == (
        "rank 2 on n2 takes 0.12 s for a microbatch, where the others' median is 0.04 s; "
        f"that costs 0.04 s of each step's {now.step_s:.3g} s"
    )


def test_a_straggler_stays_one_until_it_is_clearly_no_longer_slow() -> None:
    def slow(cell_s: float, known: frozenset[int]) -> set[int]:
        return {one.member.rank for one in stragglers(course((member(0, 0.1), member(1, cell_s))), known)}

    assert slow(0.14, frozenset()) == set()
    assert slow(0.14, frozenset({1})) == {1}
    assert slow(0.12, frozenset({1})) == set()
