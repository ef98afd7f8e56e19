"""What benchmarks/failures.py reads out of step logs, on logs made by hand."""

from __future__ import annotations

import pytest
from _steplog import Step, advances, commits, loss_gap, rate, recovery, redone

BATCH = 10


def done(at: float, step: int, took: float = 1.0, loss: float | None = None) -> Step:
    return Step(at=at, started=at - took, step=step, samples=step * BATCH, loss=loss)


def steady(first: float, steps: range) -> list[Step]:
    """One step a second, the first of them done at `first`."""
    return [done(first + at, step) for at, step in enumerate(steps)]


def test_a_step_that_two_workers_report_or_that_is_done_again_counts_once() -> None:
    log = [done(1.0, 1), done(1.1, 1), done(2.0, 2), done(5.0, 2), done(6.0, 3)]
    assert [(step.at, step.step) for step in advances(log)] == [(1.0, 1), (2.0, 2), (6.0, 3)]


def test_the_rate_of_a_steady_run_does_not_depend_on_where_its_window_lies() -> None:
    log = steady(1.0, range(1, 21))
    assert rate(log, 2.0, 12.0) == rate(log, 2.7, 12.2) == pytest.approx(BATCH)


def test_a_window_that_ends_in_a_pause_reaches_to_the_next_step() -> None:
    log = [*steady(1.0, range(1, 11)), done(30.0, 11)]
    assert rate(log, 1.0, 12.0) == pytest.approx(10 * BATCH / 29)


def test_there_is_no_rate_before_the_window_has_ended_in_a_step() -> None:
    assert rate(steady(1.0, range(1, 11)), 1.0, 12.0) is None


def test_steps_done_again_do_not_raise_the_rate() -> None:
    log = [*steady(1.0, range(1, 11)), *steady(20.0, range(6, 16))]
    assert rate(log, 1.0, 29.0) == pytest.approx(14 * BATCH / 28)


def test_recovery_lasts_until_a_new_step_and_not_until_the_first_one_done_again() -> None:
    log = [*steady(1.0, range(1, 11)), *steady(20.0, range(6, 16))]
    assert recovery(log, kill=10.5) == pytest.approx(25.0 - 10.5)


def test_a_step_that_was_under_way_at_the_kill_is_no_recovery() -> None:
    log = [*steady(1.0, range(1, 11)), done(11.0, 11), done(15.0, 12)]
    assert recovery(log, kill=10.5) == pytest.approx(4.5)


def test_there_is_no_recovery_while_nothing_new_was_begun_after_the_kill() -> None:
    assert recovery(steady(1.0, range(1, 11)), kill=10.5) is None


def test_steps_between_the_last_checkpoint_and_the_kill_are_redone() -> None:
    log = [*steady(1.0, range(1, 11)), *steady(20.0, range(6, 16))]
    assert redone(log, kill=10.5) == 5


def test_a_step_that_only_the_killed_worker_completed_is_redone() -> None:
    survivor = [*steady(1.0, range(1, 11)), *steady(13.0, range(11, 15))]
    killed = [*steady(1.0, range(1, 11)), done(10.9, 11)]
    assert redone([*survivor, *killed], kill=10.95) == 1


def test_survivors_that_go_on_redo_nothing() -> None:
    log = [*steady(1.0, range(1, 11)), *steady(12.0, range(11, 15))]
    assert redone(log, kill=10.5) == 0


def test_each_kill_answers_for_the_steps_that_came_before_the_next() -> None:
    log = [*steady(1.0, range(1, 11)), *steady(20.0, range(6, 16)), *steady(40.0, range(11, 21))]
    assert [redone(log, 10.5, 29.5), redone(log, 29.5)] == [5, 5]


def test_a_commit_began_when_its_round_was_ordered() -> None:
    torn, first = commits([(10.0, 40, 200.0, 0.5), (11.0, 44, 40.0, 0.4)], BATCH)
    assert (torn.started, torn.step, torn.samples) == (8.0, 40, 400)
    assert (first.started, first.step, first.samples, first.loss) == (10.0, 44, 440, 0.4)


def test_a_commit_of_steps_done_before_the_kill_is_no_recovery() -> None:
    found = commits([(10.0, 40, 200.0, 0.5), (10.6, 41, 20.0, 0.5), (11.1, 46, 100.0, 0.4)], BATCH)
    assert recovery(found, kill=10.5) == pytest.approx(0.6)


def test_losses_are_compared_over_the_steps_that_all_wrote_down_before_their_first_kill() -> None:
    ours = [done(2.0, 2, loss=1.0), done(4.0, 4, loss=3.0), done(9.0, 6, loss=100.0)]
    theirs = [done(at, step, loss=loss) for at, step, loss in ((1, 1, 9.0), (2, 2, 0.5), (2, 2, 1.5), (4, 4, 3.4))]
    assert loss_gap([ours, theirs], until=[5.0, 5.0]) == pytest.approx(4.4 / 4.0 - 1)


def test_runs_without_a_common_step_are_not_comparable() -> None:
    assert loss_gap([[done(1.0, 1, loss=1.0)], [done(1.0, 2, loss=1.0)]], until=[5.0, 5.0]) is None
