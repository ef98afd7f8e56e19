"""Which parts of a step can't be right."""

from __future__ import annotations

import pytest
import torch

from paceline.training.sanity import Sanity, evidence_of

NAN, INF = float("nan"), float("inf")


def seasoned() -> Sanity:
    sanity = Sanity()
    for _ in range(10):
        assert judged(sanity, [0.5, 0.5], [1.0, 2.0]) == ([], "")
    return sanity


def judged(sanity: Sanity, losses: list[float], norms: list[float], trusted: bool = False) -> tuple[list[int], str]:
    """By a lone worker."""
    return sanity.suspects(losses, norms, sanity.usual, trusted)


@pytest.mark.parametrize(
    ("losses", "norms", "places"),
    [([0.5, NAN], [1, 1], [1]), ([0.5, 0.5], [INF, 1], [0]), ([INF, 0.5], [1, NAN], [0, 1]), ([0.5], [1], [])],
)
def test_what_is_not_finite_is_suspect_from_the_first_step_on(
    losses: list[float], norms: list[float], places: list[int]
) -> None:
    assert judged(Sanity(), losses, norms)[0] == places
    assert judged(Sanity(), losses, norms, trusted=True)[0] == places


def test_a_norm_far_above_the_usual_is_suspect_unless_it_was_computed_twice() -> None:
    places, reason = judged(seasoned(), [0.5, 0.5], [1.0, 1e5])
    assert (places, reason) == ([1], "gradient norm 100000, where 2 is usual")
    assert judged(seasoned(), [0.5, 0.5], [1.0, 1e5], trusted=True)[0] == []
    assert [judged(seasoned(), [0.5], [2.0 * times])[0] for times in (990, 1010)] == [[], [0]]


def test_a_newcomer_judges_by_what_the_others_take_for_usual() -> None:
    newcomer, others = Sanity(), seasoned().usual
    assert newcomer.usual == 0.0
    assert newcomer.suspects([0.5, 0.5], [1.0, 1e5], others, trusted=False)[0] == [1]


def test_nothing_is_absurd_before_the_usual_is_known_and_a_growing_norm_never_is() -> None:
    assert judged(Sanity(), [0.5], [1e30])[0] == []
    sanity = seasoned()
    assert [judged(sanity, [0.5], [2.0 * 1.1**n])[0] for n in range(200)] == [[]] * 200


def test_evidence_tells_one_flipped_bit() -> None:
    gradient = torch.linspace(-1, 1, 1000)
    spoilt = gradient.clone()
    spoilt.view(torch.int32)[17] ^= 1
    partials = {(0, 0): [gradient, None]}
    assert evidence_of(0.5, partials) == evidence_of(0.5, {(0, 0): [gradient.clone(), None]})
    assert evidence_of(0.5, partials).digest != evidence_of(0.5, {(0, 0): [spoilt, None]}).digest
    assert evidence_of(0.5, partials).norm == pytest.approx(float(gradient.norm()))
