"""Stop conditions: when they fire, how they join, what they refuse, and that JSON keeps them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import paceline as pl
from paceline.stop import Progress, StopCondition, better, fired, improved, leaves, must_end, step_bound

adapter: TypeAdapter[StopCondition] = TypeAdapter(StopCondition)

leaf = st.one_of(
    st.integers(1, 50).map(pl.MaxEpochs),
    st.integers(1, 500).map(pl.MaxSteps),
    st.floats(0.1, 1e6).map(pl.MaxTime),
    st.floats(-10, 10).map(lambda bound: pl.Metric("val_accuracy", at_least=bound)),
    st.floats(-10, 10).map(lambda bound: pl.Metric("val_loss", at_most=bound)),
    st.integers(1, 5).map(lambda n: pl.Patience("val_loss", n)),
)
conditions = st.recursive(
    leaf,
    lambda inner: st.tuples(inner, inner, st.booleans()).map(lambda t: t[0] | t[1] if t[2] else t[0] & t[1]),
    max_leaves=6,
)
histories = st.lists(
    st.fixed_dictionaries({"val_loss": st.floats(-10, 10) | st.just(math.nan), "val_accuracy": st.floats(-10, 10)}),
    max_size=6,
)
progresses = st.builds(Progress, st.integers(0, 600), st.integers(1, 20), st.floats(0, 2e6), histories.map(tuple))


def at(step: int = 0, elapsed_s: float = 0.0, history: tuple[dict[str, float], ...] = ()) -> Progress:
    return Progress(step=step, steps_per_epoch=10, elapsed_s=elapsed_s, history=history)


def losses(*values: float) -> tuple[dict[str, float], ...]:
    return tuple({"val_loss": value} for value in values)


def test_max_epochs_fires_at_the_last_step_of_its_epoch() -> None:
    assert not fired(pl.MaxEpochs(3), at(29))
    assert fired(pl.MaxEpochs(3), at(30)) == (pl.MaxEpochs(3),)


def test_max_steps_fires_at_its_step_and_stays_fired() -> None:
    assert [bool(fired(pl.MaxSteps(7), at(step))) for step in (6, 7, 8)] == [False, True, True]


def test_max_time_fires_when_the_time_is_over() -> None:
    assert [bool(fired(pl.MaxTime("1m"), at(elapsed_s=s))) for s in (59.9, 60.0, 61.0)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 d ", 172800), (0.5, 0.5)]
)
def test_durations_are_read_as_seconds(text: str | float, seconds: float) -> None:
    assert pl.MaxTime(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "ten minutes", "10 minutes", "-5m", "1h30m", "m"])
def test_what_is_no_duration_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(pl.InvalidSpec, match="is not a duration") as caught:
        pl.MaxTime(text)
    assert "'10m'" in caught.value.fact


def test_a_metric_is_judged_by_the_latest_evaluation_alone() -> None:
    bound = pl.Metric("val_loss", at_most=0.5)
    assert not fired(bound, at())
    assert not fired(bound, at(history=losses(0.4, 0.6)))
    assert fired(bound, at(history=losses(0.6, 0.5)))
    assert fired(pl.Metric("val_loss", at_least=0.5), at(history=losses(0.5)))


def test_a_bound_of_zero_is_a_bound() -> None:
    assert fired(pl.Metric("val_loss", at_most=0.0), at(history=losses(-1.0)))
    assert not fired(pl.Metric("val_loss", at_least=0.0), at(history=losses(-1.0)))


def test_nan_never_reaches_a_bound() -> None:
    assert not fired(pl.Metric("val_loss", at_most=9.0), at(history=losses(math.nan)))
    assert not fired(pl.Metric("val_loss", at_least=-9.0), at(history=losses(math.nan)))


def test_patience_counts_evaluations_since_the_best_one() -> None:
    patience = pl.Patience("val_loss", 2)
    assert not fired(patience, at(history=losses(1.0, 0.5, 0.6)))
    assert fired(patience, at(history=losses(1.0, 0.5, 0.6, 0.5)))  # equal is no improvement
    assert not fired(patience, at(history=losses(1.0, 0.5, 0.6, 0.4)))


def test_patience_counts_nan_as_no_improvement() -> None:
    assert fired(pl.Patience("val_loss", 2), at(history=losses(1.0, math.nan, math.nan)))
    assert fired(pl.Patience("val_loss", 2), at(history=losses(math.nan, math.nan)))


def test_patience_follows_its_mode() -> None:
    rising = losses(0.1, 0.2, 0.3)
    assert not fired(pl.Patience("val_loss", 2, mode="max"), at(history=rising))
    assert fired(pl.Patience("val_loss", 2, mode="min"), at(history=rising))


@pytest.mark.parametrize(
    ("name", "way"),
    [("val_loss", "min"), ("val_accuracy", "max"), ("val_f1", "max"), ("RMSE", "min"), ("val_bleu", None)],
)
def test_the_name_of_a_metric_tells_which_way_is_better_or_nothing(name: str, way: str | None) -> None:
    assert better(name) == way


def test_patience_on_a_name_that_tells_nothing_wants_a_mode() -> None:
    with pytest.raises(pl.InvalidSpec, match="mode='min' or mode='max'"):
        pl.Patience("val_bleu", 3)
    assert pl.Patience("val_bleu", 3, mode="max").mode == "max"


@pytest.mark.parametrize(
    "make",
    [
        lambda: pl.MaxEpochs(0),
        lambda: pl.MaxSteps(-1),
        lambda: pl.MaxTime(0),
        lambda: pl.MaxTime(math.inf),
        lambda: pl.Metric("val_loss"),
        lambda: pl.Metric("val_loss", at_least=1, at_most=2),
        lambda: pl.Patience("val_loss", 0),
        lambda: pl.MaxEpochs(3, every=2),
    ],
)
def test_an_impossible_condition_is_an_invalid_spec_with_a_remedy(make: object) -> None:
    with pytest.raises(pl.InvalidSpec) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code == "invalid_spec"
    assert caught.value.remedy


@given(conditions, conditions, progresses)
def test_or_fires_with_either_side_and_and_with_both(a: StopCondition, b: StopCondition, progress: Progress) -> None:
    left, right = fired(a, progress), fired(b, progress)
    assert fired(a | b, progress) == left + right
    assert fired(a & b, progress) == (left + right if left and right else ())


@given(conditions, progresses)
def test_what_fires_are_leaves_that_fire_alone(condition: StopCondition, progress: Progress) -> None:
    found = fired(condition, progress)
    assert all(leaf in tuple(leaves(condition)) and fired(leaf, progress) == (leaf,) for leaf in found)


@given(conditions)
def test_json_keeps_a_condition_and_its_text(condition: StopCondition) -> None:
    again = adapter.validate_json(adapter.dump_json(condition))
    assert again == condition
    assert str(again) == str(condition)


@given(conditions, st.integers(1, 20), histories)
def test_a_condition_with_a_step_bound_has_fired_there_and_must_end(
    condition: StopCondition, steps_per_epoch: int, history: list[dict[str, float]]
) -> None:
    bound = step_bound(condition, steps_per_epoch)
    if bound is not None:
        assert must_end(condition)
        assert fired(condition, Progress(bound, steps_per_epoch, 0.0, history))


@given(conditions, st.integers(1, 20))
def test_a_condition_that_must_end_fires_without_any_metric(condition: StopCondition, steps_per_epoch: int) -> None:
    forever = Progress(10**9, steps_per_epoch, 1e12, ())
    assert bool(fired(condition, forever)) == must_end(condition)


def test_step_bounds_are_the_first_of_any_and_the_last_of_all() -> None:
    epochs, steps, metric = pl.MaxEpochs(2), pl.MaxSteps(15), pl.Metric("val_loss", at_most=0)
    assert step_bound(epochs | steps, 10) == 15
    assert step_bound(epochs & steps, 10) == 20
    assert step_bound(epochs | metric, 10) == 20
    assert step_bound(epochs & metric, 10) is None


def test_a_condition_reads_as_it_was_written() -> None:
    condition = (pl.MaxEpochs(3) & pl.Metric("val_accuracy", at_least=0.9)) | pl.MaxTime("10m")
    assert str(condition) == "(MaxEpochs(3) & Metric('val_accuracy', at_least=0.9)) | MaxTime(600s)"


def test_improvement_is_strict_and_nan_is_none() -> None:
    assert improved(1.0, None, "min")
    assert not improved(math.nan, None, "min")
    assert not improved(1.0, 1.0, "min")
    assert improved(2.0, 1.0, "max")
    assert not improved(2.0, 1.0, "min")
