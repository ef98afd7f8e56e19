"""Before anything is sent: what can't travel is named by its path, what travels by accident is warned of."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import paceline as pl
from paceline.client.packaging import pack
from paceline.client.preflight import LARGE_CAPTURE_BYTES, check_model, warn_of_large_captures

GUARD = threading.Lock()


class Holder:
    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)

    def method(self) -> None:
        """Bound to what it can't leave behind."""


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        self.layers[1].cache = {"guard": threading.Lock()}


def uses_a_global(outputs: Any, targets: Any) -> Any:
    return GUARD


def has_a_default(outputs: Any, targets: Any, guard: Any = GUARD) -> Any:
    return guard


def captures(value: Any) -> Any:
    return lambda: value


CULPRITS: dict[str, Any] = {
    "x": GUARD,
    "x.layers.1.cache.guard": Encoder(),
    "x.model.layers.1.cache.guard": {"model": Encoder(), "loss": max},
    "x[1][0]": [1, (GUARD,)],
    "x['a b'].inner": {"a b": {"inner": GUARD}},
    "x.part.__self__.guard": Holder(part=Holder(guard=GUARD).method),
    "x (captures value)": captures(GUARD),
    "x (captures value).part": captures(Holder(part=GUARD)),
    "x (captures GUARD)": uses_a_global,
    "x (default of guard)": has_a_default,
    "x.key": partial(max, key=GUARD),
    "x.args[1]": partial(max, 1, GUARD),
    "x.func (captures value)": partial(captures(GUARD)),
}


@pytest.mark.parametrize("path", CULPRITS)
def test_what_can_not_be_pickled_is_named_by_its_path(path: str) -> None:
    with pytest.raises(pl.Unpicklable) as caught:
        pack(CULPRITS[path], "x")
    assert caught.value.details["path"] == path
    assert path in caught.value.fact
    assert "_thread.lock" in caught.value.fact
    assert "callable that builds it" in caught.value.remedy


def test_a_cycle_on_the_way_to_the_culprit_is_no_trap() -> None:
    first = Holder()
    first.self = first
    first.guard = GUARD
    with pytest.raises(pl.Unpicklable) as caught:
        pack(first, "x")
    assert caught.value.details["path"] == "x.guard"


def test_a_users_own_reduce_that_raises_is_named_with_what_it_said() -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise RuntimeError("not for travel")

    with pytest.raises(pl.Unpicklable, match="not for travel") as caught:
        pack({"deep": [Refuses()]}, "model")
    assert caught.value.details["path"] == "model.deep[0]"


def test_a_function_that_captures_megabytes_is_warned_of_by_name_and_size() -> None:
    table = np.zeros(2_500_000, dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"loss captures value, 2\.5 MB"):
        warn_of_large_captures(captures(table), "loss")
    with pytest.warns(UserWarning, match=r"augment captures value, 4\.0 MB"):
        warn_of_large_captures(captures(torch.zeros(1_000_000)), "augment")


TABLE = np.zeros(LARGE_CAPTURE_BYTES + 1, dtype=np.uint8)


def uses_a_large_global() -> Any:
    return TABLE


def test_a_large_global_that_a_function_uses_is_warned_of_too() -> None:
    with pytest.warns(UserWarning, match="loss captures TABLE"):
        warn_of_large_captures(uses_a_large_global, "loss")


@pytest.mark.parametrize(
    "function",
    [captures(np.zeros(LARGE_CAPTURE_BYTES, dtype=np.uint8)), captures("text"), max, None, partial(max, TABLE)],
)
def test_what_is_small_or_given_on_purpose_is_not_warned_of(function: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_large_captures(function, "loss")


@pytest.mark.parametrize("model", [torch.nn.Linear(1, 1), lambda: None, torch.nn.ReLU, partial(torch.nn.Linear, 1, 1)])
def test_modules_and_builders_are_models(model: Any) -> None:
    check_model(model)


def frozen() -> torch.nn.Module:
    return torch.nn.Linear(1, 1).requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "fact"),
    [
        (torch.nn.ReLU(), "no parameters"),
        (frozen(), "no parameters"),
        ("resnet50", "is a str"),
        (None, "is a NoneType"),
    ],
)
def test_what_can_not_be_trained_is_refused_with_a_remedy(model: Any, fact: str) -> None:
    with pytest.raises(pl.InvalidSpec, match=fact) as caught:
        check_model(model)
    assert caught.value.remedy
