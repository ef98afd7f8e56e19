"""The ledger's promise, checked: every sample of an epoch is consumed once, whatever failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from paceline.grid import Grid


def per_epoch(commits: Sequence[tuple[int, int]], grid: Grid) -> list[dict[str, int]]:
    """For each epoch touched: samples `expected` in a whole one, `committed`, and committed `twice` or more.

    commits: [from_step, to_step) of the valid entries. A step's samples follow from the grid.
    """
    times = Counter(step for first, end in commits for step in range(first, end))
    epochs: dict[int, dict[str, int]] = {}
    for step, count in sorted(times.items()):
        epoch, _ = grid.locate(step)
        row = epochs.setdefault(epoch, {"epoch": epoch, "expected": grid.samples_per_epoch, "committed": 0, "twice": 0})
        row["committed"] += grid.batch_len(step)
        row["twice"] += grid.batch_len(step) if count > 1 else 0
    return list(epochs.values())
