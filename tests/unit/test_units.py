"""How a model is cut into units: pure, and from the module tree alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paceline.units import LEAST_BYTES, ModuleTree, choose_units, tree_of


def layers(count: int, nbytes: int) -> ModuleTree:
    block = tuple(
        ModuleTree(
            f"layers.{at}", 0, (ModuleTree(f"layers.{at}.a", nbytes // 2), ModuleTree(f"layers.{at}.b", nbytes // 2))
        )
        for at in range(count)
    )
    return ModuleTree("", 64, (ModuleTree("layers", 0, block, lists=True),), lists=True)


def test_each_layer_of_a_transformer_is_a_unit() -> None:
    units = choose_units(layers(4, 8 * LEAST_BYTES))
    assert units == {**{f"layers.{at}": 8 * LEAST_BYTES for at in range(4)}, "": 64}


def test_a_small_model_is_one_unit() -> None:
    assert choose_units(layers(4, 1024)) == {"": 4 * 1024 + 64}


def test_modules_that_share_a_parameter_stay_in_one_unit() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(4096, 512), "mid": nn.Linear(512, 512), "head": nn.Linear(512, 4096, False)}
    )
    model["head"].weight = model["embed"].weight
    units = choose_units(tree_of(model))
    assert set(units) == {"mid", ""}
    assert units[""] == 4096 * 512 * 4


trees = st.recursive(
    st.integers(0, 4 * LEAST_BYTES).map(lambda n: (n, [])),
    lambda below: st.tuples(st.integers(0, LEAST_BYTES), st.lists(below, max_size=5)),
    max_leaves=40,
)


def built(shape: tuple[int, list], path: str = "") -> ModuleTree:  # type: ignore[type-arg]
    own, below = shape
    children = tuple(built(child, f"{path}.{at}" if path else str(at)) for at, child in enumerate(below))
    return ModuleTree(path, own, children, lists=len(below) > 2)


@given(trees)
def test_units_hold_every_byte_once_and_none_lies_inside_another(shape: tuple[int, list]) -> None:  # type: ignore[type-arg]
    tree = built(shape)
    units = choose_units(tree)
    assert sum(units.values()) == tree.nbytes
    assert list(units)[-1] == ""
    paths = [path for path in units if path]
    assert not [(a, b) for a in paths for b in paths if a != b and b.startswith(f"{a}.")]


def test_the_tree_counts_each_parameter_once() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 3, enable_nested_tensor=False)
    assert tree_of(model).nbytes == sum(p.nbytes for p in model.parameters())
    with torch.device("meta"):
        unbuilt = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 3, enable_nested_tensor=False)
    assert tree_of(unbuilt) == tree_of(model)
