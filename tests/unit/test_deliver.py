"""A model in several files: cut by size, named as Hugging Face names them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.training.sharded.deliver import cut_files


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(1, 150))
def test_files_hold_every_tensor_in_order_and_only_a_lone_one_is_over_the_bound(sizes: list[int], most: int) -> None:
    named = [(f"t{at}", nbytes) for at, nbytes in enumerate(sizes)]
    files = cut_files(named, most)
    assert [name for held in files.values() for name in held] == [name for name, _ in named]
    by_name = dict(named)
    assert all(len(held) == 1 or sum(by_name[name] for name in held) <= most for held in files.values())
    assert list(files) == [f"model-{at:05}-of-{len(files):05}.safetensors" for at in range(1, len(files) + 1)]
