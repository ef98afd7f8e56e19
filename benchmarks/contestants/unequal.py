"""The work of unequal.py: the CNN of steady.py on four workers, the first of which is four times as fast as the others.

A worker's speed is its quota of processor time. The microbatches can be split by these speeds without a rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import steady

from paceline.testing.limits import Limits

QUOTAS = (0.8, 0.2, 0.2, 0.2)  # cores; together less than two, so that a master has room beside them
BATCH, MICROBATCHES = 1792, 28  # a step of a second: how to split it is the question, exchanges are throughput.py's
STEPS, WARM_UP_STEPS = 26, 6

model, data = steady.WORKLOADS["cnn"].model, steady.WORKLOADS["cnn"].data
optimizer, loss = steady.optimizer, steady.loss


@contextmanager
def groups(quotas: Sequence[float | None] = QUOTAS) -> Iterator[list[Limits]]:
    """One for each worker. None: at full speed until `set_cores`."""
    with ExitStack() as stack:
        yield [stack.enter_context(Limits(quota)) for quota in quotas]


def enter(entry: str) -> None:
    """Put this process, imports and data behind it, under its quota."""
    Path(entry).write_text(str(os.getpid()))
