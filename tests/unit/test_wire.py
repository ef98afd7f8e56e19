"""Malformed bodies: whatever comes over the wire is either a submission or a finding, never a crash."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import paceline as pl
from paceline.planner.planner import plan_workers
from paceline.spec import Submission, TrainOptions

from builders import node, submission

BODY = submission(
    stop=pl.MaxEpochs(3) | pl.MaxTime("10m") & pl.Metric("val_loss", at_most=0.1) | pl.Patience("val_loss", 2),
    resources=pl.Resources(workers=2, memory="1GiB", nodes=("a",)),
).model_dump(mode="json")

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 2**63, 1e308, "", "auto", "9" * 400 + "GiB", "1" * 400, "best:", "max_epochs"]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["kind", "self", "name", "epochs"]), st.integers() | st.text(max_size=5)),
)


def places(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of a JSON document, its own apart."""
    entries = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(path: tuple[Any, ...], change: str, value: Any) -> dict[str, Any]:
    """BODY with one value replaced, left out, or with an unknown key beside it."""
    body = copy.deepcopy(BODY)
    parent: Any = body
    for key in path[:-1]:
        parent = parent[key]
    if change == "replace":
        parent[path[-1]] = value
    elif change == "leave out":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent["self"] = value
    return body


@settings(max_examples=400)
@given(st.sampled_from(list(places(BODY))), st.sampled_from(["replace", "leave out", "add"]), junk)
def test_a_body_with_one_thing_wrong_is_a_finding_or_a_job_that_can_be_planned_and_stored(
    path: tuple[Any, ...], change: str, value: Any
) -> None:
    try:
        found = Submission.model_validate(changed(path, change, value))
    except (ValidationError, pl.InvalidSpec, pl.NotYetSupported):
        return
    assert Submission.model_validate(json.loads(json.dumps(found.model_dump(mode="json")))) == found
    assert -(2**63) <= found.options.priority < 2**63  # SQLite's integers
    with contextlib.suppress(pl.Unplaceable):
        plan_workers([node("a"), node("b")], found.options, found.facts)


@pytest.mark.parametrize(
    ("stop", "finding"),
    [
        ({"kind": "max_epochs"}, "stop.max_epochs.epochs: Field required"),
        ({"kind": "any", "conditions": [{"kind": "max_time"}]}, "stop.any.conditions.0.max_time.seconds"),
        ({"kind": "max_steps", "steps": 1, "self": 2}, "stop.max_steps.self"),
        ({"kind": "patience", "name": 3, "evaluations": 1}, "stop.patience.name"),
        ({"kind": "soon"}, "'soon'"),
    ],
)
def test_a_stop_condition_that_lacks_something_is_named_with_its_place(stop: Any, finding: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainOptions.model_validate({"stop": stop})
    told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in caught.value.errors())
    assert finding in told


def test_patience_finds_its_mode_by_the_metrics_name_on_the_wire_too() -> None:
    stop = {"kind": "any", "conditions": [{"kind": "patience", "name": "val_loss", "evaluations": 2}, {"kind": "max_epochs", "epochs": 9}]}  # fmt: skip
    assert TrainOptions.model_validate({"stop": stop}).stop == pl.Patience("val_loss", 2) | pl.MaxEpochs(9)
