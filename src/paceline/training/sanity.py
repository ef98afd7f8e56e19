"""Whether what the workers computed of a step can be right, before it is committed."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

import torch

from paceline.messages.from_worker import Evidence
from paceline.training.gradients import Gradients
from paceline.tree import Block

ABSURD = 1e3  # times the usual norm; a flipped high bit of an exponent makes 1e9 and more of a number
REMEMBERED_STEPS = 64
USUAL_FROM_STEPS = 8


class SuspectStep(Exception):
    """What the workers at `places` computed of a step is not finite, or absurd. Nothing of it is committed.

    evidence: of this worker's own part, where its place is among them.
    """

    def __init__(self, places: Sequence[int], reason: str, evidence: Evidence | None) -> None:
        super().__init__(reason)
        self.places, self.reason, self.evidence = places, reason, evidence


class Sanity:
    """Judges each step by the norms of the steps before, in whatever group a worker did them.

    All members see the same values, what each of them takes for usual too, and so judge alike.
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    @property
    def usual(self) -> float:
        """The norm that this worker takes for usual; 0 while it has seen too few steps to tell."""
        return median(self._norms) if len(self._norms) >= USUAL_FROM_STEPS else 0.0

    def suspects(
        self, losses: Sequence[float], norms: Sequence[float], usual: float, trusted: bool
    ) -> tuple[list[int], str]:
        """(places whose part of the step can't be right, why). losses, norms: of each place's part.

        usual: the largest that any member takes for it; 0 where none can tell.
        """
        bad = [at for at, pair in enumerate(zip(losses, norms, strict=True)) if not all(map(math.isfinite, pair))]
        if bad:
            return bad, f"loss {losses[bad[0]]:g}, gradient norm {norms[bad[0]]:g}"
        absurd = [at for at, norm in enumerate(norms) if 0 < ABSURD * usual < norm and not trusted]
        if absurd:
            return absurd, f"gradient norm {norms[absurd[0]]:g}, where {usual:g} is usual"
        self._norms.append(max(norms))
        return [], ""


def evidence_of(loss: float, partials: Mapping[Block, Gradients]) -> Evidence:
    """The same for the same bits, whoever computed them."""
    total, gradients = hashlib.sha256(), []
    for block, held in sorted(partials.items()):
        total.update(repr((block, [g is not None for g in held])).encode())
        for gradient in held:
            if gradient is not None:
                gradients.append(gradient)
                total.update(gradient.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
    return Evidence(loss=loss, norm=norm, digest=total.hexdigest())
