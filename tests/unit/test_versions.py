"""Versions that must agree, and the refusal where they do not."""

from __future__ import annotations

import platform

import pytest
import torch

import paceline as pl
from paceline.spec import Versions
from paceline.versions import check, here

OURS = Versions(paceline="0.1.0", python="3.11", torch="2.13.0+cpu")


def test_this_process_tells_its_own_versions() -> None:
    mine = here()
    assert platform.python_version().startswith(f"{mine.python}.")
    assert mine.torch is not None
    assert torch.__version__.split("+")[0] == mine.torch.split("+")[0]
    check(mine, mine, "node n1")
    check(mine, mine, "the client")


@pytest.mark.parametrize("torch_version", ["2.13.0+cpu", "2.13.0", "2.13.1+cu130"])
def test_a_client_may_have_another_build_of_the_same_torch(torch_version: str) -> None:
    check(OURS.model_copy(update={"torch": torch_version}), OURS, "the client")


@pytest.mark.parametrize("torch_version", ["2.13.0", "2.13.1+cpu", "2.13.0+cu130", None])
def test_a_node_must_have_the_very_build_of_torch(torch_version: str | None) -> None:
    with pytest.raises(pl.VersionMismatch, match=r"node n1 has torch"):
        check(OURS.model_copy(update={"torch": torch_version}), OURS, "node n1")


@pytest.mark.parametrize(
    ("change", "name", "theirs", "ours"),
    [
        ({"python": "3.12"}, "Python", "3.12", "3.11"),
        ({"paceline": "0.2.0"}, "Paceline", "0.2.0", "0.1.0"),
        ({"torch": "2.12.1"}, "torch", "2.12", "2.13"),
        ({"torch": None}, "torch", None, "2.13"),
    ],
)
def test_a_difference_is_refused_with_both_versions_and_a_remedy(
    change: dict[str, str | None], name: str, theirs: str | None, ours: str
) -> None:
    with pytest.raises(pl.VersionMismatch) as caught:
        check(OURS.model_copy(update=change), OURS, "the client")
    assert caught.value.details == {"name": name, "theirs": theirs, "ours": ours}
    assert (theirs or "not installed") in caught.value.fact
    assert ours in caught.value.fact
    assert f"Install {name} {ours}" in caught.value.remedy
    assert "None" not in str(caught.value)


def test_a_master_without_torch_takes_clients_and_nodes_without_it() -> None:
    bare = OURS.model_copy(update={"torch": None})
    check(bare, bare, "the client")
    with pytest.raises(pl.VersionMismatch) as caught:
        check(OURS, bare, "the client")
    assert "None" not in str(caught.value)
