"""Stop conditions: plain data, joined with `|` and `&`, judged by a pure function over a job's progress."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from paceline.findings import invalid_spec

Count = Annotated[int, Field(gt=0, lt=2**53)]  # what JSON and floats hold exactly
MOST_WORKERS = 4096  # of one job: plans compare each number of workers
Init = TypeVar("Init", bound=Callable[..., None])
Bound = TypeVar("Bound", int, float)

BETTER_WHEN_LOWER = ("loss", "error", "mae", "mse", "rmse", "perplexity")
BETTER_WHEN_HIGHER = ("accuracy", "acc", "f1", "auc", "precision", "recall", "r2", "iou")


@dataclass(frozen=True)
class Progress:
    """What a stop condition may look at. `history` has one mapping of values per evaluation, oldest first."""

    step: int
    steps_per_epoch: int
    elapsed_s: float
    history: Sequence[Mapping[str, float]]


def for_callers(init: Init) -> Init:
    """An `__init__` for Python callers alone: JSON is parsed field by field, so that what it lacks is a finding.

    Each class that users write has its own: of an inherited one, type checkers make fields that know no "4GiB".
    """
    init.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # as RootModel's: pydantic does not call it
    return init


def parse_duration(text: str) -> float:
    """Seconds of `"90s"`, `"10m"`, `"1.5h"`, `"2d"`, `"90"`. Raises ValueError on anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write seconds, or e.g. '90s', '10m', '1.5h'")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


class _Condition(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @for_callers
    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as invalid:
            raise invalid_spec(invalid, type(self).model_fields) from None

    def __or__(self, other: StopCondition) -> AnyOf:
        return AnyOf(conditions=(self, other))

    def __and__(self, other: StopCondition) -> AllOf:
        return AllOf(conditions=(self, other))


class MaxEpochs(_Condition):
    """Stop after this many passes over the training data."""

    kind: Literal["max_epochs"] = "max_epochs"
    epochs: Count

    @for_callers
    def __init__(self, epochs: int, **kwargs: Any) -> None:
        super().__init__(epochs=epochs, **kwargs)

    def __str__(self) -> str:
        return f"MaxEpochs({self.epochs})"


class MaxSteps(_Condition):
    """Stop after this many optimizer steps."""

    kind: Literal["max_steps"] = "max_steps"
    steps: Count

    @for_callers
    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(steps=steps, **kwargs)

    def __str__(self) -> str:
        return f"MaxSteps({self.steps})"


class MaxTime(_Condition):
    """Stop after this much training time: seconds, or text such as `"90s"`, `"10m"`, `"1.5h"`.

    Where it ends a job, the model depends on the machines' speed and `result.reproducible` is false.
    """

    kind: Literal["max_time"] = "max_time"
    seconds: float = Field(gt=0, allow_inf_nan=False)

    @for_callers
    def __init__(self, seconds: float | str, **kwargs: Any) -> None:
        super().__init__(seconds=seconds, **kwargs)

    @field_validator("seconds", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    def __str__(self) -> str:
        return f"MaxTime({self.seconds:g}s)"


class Metric(_Condition):
    """Stop when an evaluated metric reaches a bound: exactly one of `at_least` and `at_most`."""

    kind: Literal["metric"] = "metric"
    name: str
    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None

    @for_callers
    def __init__(self, name: str, *, at_least: float | None = None, at_most: float | None = None, **kw: Any) -> None:
        super().__init__(name=name, at_least=at_least, at_most=at_most, **kw)

    @model_validator(mode="after")
    def _one_bound(self) -> Metric:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"Metric({self.name!r}) takes exactly one of at_least= and at_most=")
        return self

    def __str__(self) -> str:
        bound = f"at_least={self.at_least:g}" if self.at_least is not None else f"at_most={self.at_most:g}"
        return f"Metric({self.name!r}, {bound})"


class Patience(_Condition):
    """Stop when a metric has not improved for `evaluations` evaluations in a row.

    `mode` says which way is better, "min" or "max"; it may be left out where the name tells
    (`val_loss`, `val_accuracy`).
    """

    kind: Literal["patience"] = "patience"
    name: str
    evaluations: Count
    mode: Literal["min", "max"]

    @for_callers
    def __init__(self, name: str, evaluations: int, mode: Literal["min", "max"] | None = None, **kw: Any) -> None:
        super().__init__(name=name, evaluations=evaluations, mode=mode, **kw)

    @model_validator(mode="before")
    @classmethod
    def _mode_by_name(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("mode") is not None or not isinstance(fields.get("name"), str):
            return fields
        return {**fields, "mode": better(fields["name"])}

    @field_validator("mode", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("the name does not tell which way is better; give mode='min' or mode='max'")
        return value

    def __str__(self) -> str:
        return f"Patience({self.name!r}, {self.evaluations})"


class AnyOf(_Condition):
    """Stop when any of the conditions is met; written `a | b`."""

    kind: Literal["any"] = "any"
    conditions: tuple[StopCondition, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return " | ".join(_bracketed(c) for c in self.conditions)


class AllOf(_Condition):
    """Stop when all of the conditions are met; written `a & b`."""

    kind: Literal["all"] = "all"
    conditions: tuple[StopCondition, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return " & ".join(_bracketed(c) for c in self.conditions)


StopCondition = Annotated[
    MaxEpochs | MaxSteps | MaxTime | Metric | Patience | AnyOf | AllOf, Field(discriminator="kind")
]
AnyOf.model_rebuild()
AllOf.model_rebuild()


def _bracketed(condition: StopCondition) -> str:
    return f"({condition})" if isinstance(condition, AnyOf | AllOf) else str(condition)


def better(metric: str) -> Literal["min", "max"] | None:
    """Which way a metric improves, where its name tells; None where it does not."""
    last = re.split(r"[_\W]+", metric.lower())[-1]
    if last in BETTER_WHEN_LOWER:
        return "min"
    return "max" if last in BETTER_WHEN_HIGHER else None


def improved(value: float, best: float | None, mode: Literal["min", "max"]) -> bool:
    """Whether `value` is strictly better than `best`. NaN never is; anything beats no best."""
    if math.isnan(value):
        return False
    return best is None or (value < best if mode == "min" else value > best)


def leaves(condition: StopCondition) -> Iterator[StopCondition]:
    """The single conditions of the tree, left to right."""
    if isinstance(condition, AnyOf | AllOf):
        for part in condition.conditions:
            yield from leaves(part)
    else:
        yield condition


def fired(condition: StopCondition, progress: Progress) -> tuple[StopCondition, ...]:
    """The leaves that stop the job now; empty while it must go on."""
    if isinstance(condition, AnyOf):
        return tuple(leaf for part in condition.conditions for leaf in fired(part, progress))
    if isinstance(condition, AllOf):
        parts = [fired(part, progress) for part in condition.conditions]
        return tuple(leaf for part in parts for leaf in part) if all(parts) else ()
    return (condition,) if _met(condition, progress) else ()


def _met(leaf: StopCondition, progress: Progress) -> bool:
    match leaf:
        case MaxEpochs():
            return progress.step >= leaf.epochs * progress.steps_per_epoch
        case MaxSteps():
            return progress.step >= leaf.steps
        case MaxTime():
            return progress.elapsed_s >= leaf.seconds
        case Metric():
            return _reached(leaf, progress.history)
        case Patience():
            return _stale_for(leaf, progress.history) >= leaf.evaluations
    raise TypeError(f"not a leaf: {leaf!r}")


def _reached(leaf: Metric, history: Sequence[Mapping[str, float]]) -> bool:
    if not history or leaf.name not in history[-1]:
        return False
    value = history[-1][leaf.name]
    return value >= leaf.at_least if leaf.at_least is not None else value <= (leaf.at_most or 0.0)


def _stale_for(leaf: Patience, history: Sequence[Mapping[str, float]]) -> int:
    """Evaluations since the best one."""
    best, stale = None, 0
    for values in history:
        value = values.get(leaf.name, math.nan)
        if improved(value, best, leaf.mode):
            best, stale = value, 0
        else:
            stale += 1
    return stale


def bound_of(condition: StopCondition, of_leaf: Callable[[StopCondition], Bound | None]) -> Bound | None:
    """By when the condition must have fired, given that of its single conditions: of any the first, of all the last.

    None if there is none, as for what a metric decides.
    """
    if not isinstance(condition, AnyOf | AllOf):
        return of_leaf(condition)
    bounds = [bound_of(part, of_leaf) for part in condition.conditions]
    known = [bound for bound in bounds if bound is not None]
    if isinstance(condition, AnyOf):
        return min(known, default=None)
    return max(known) if len(known) == len(bounds) else None


def step_bound(condition: StopCondition, steps_per_epoch: int) -> int | None:
    """The step by which the condition must have fired, whatever the metrics do; None if there is none."""

    def of_leaf(leaf: StopCondition) -> int | None:
        if isinstance(leaf, MaxEpochs):
            return leaf.epochs * steps_per_epoch
        return leaf.steps if isinstance(leaf, MaxSteps) else None

    return bound_of(condition, of_leaf)


def time_bound(condition: StopCondition) -> float | None:
    """Seconds of training by which the condition must have fired, whatever else happens; None if there is none."""
    return bound_of(condition, lambda leaf: leaf.seconds if isinstance(leaf, MaxTime) else None)


def must_end(condition: StopCondition) -> bool:
    """Whether the condition is certain to fire some day, by steps or by time."""
    if isinstance(condition, AnyOf):
        return any(must_end(part) for part in condition.conditions)
    if isinstance(condition, AllOf):
        return all(must_end(part) for part in condition.conditions)
    return isinstance(condition, MaxEpochs | MaxSteps | MaxTime)
