"""What was measured and a plan builds on: nodes' speed, links between them, and models' times and sizes. Plain data."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from paceline.spec import Facts, TrainOptions

# What a worker without others grows by where the optimizer is Adam: parameters, gradients, two of the optimizer, and a
# copy to save of all but the gradients.
COPIES_ALONE = 7
MOST_COPIES = COPIES_ALONE + 1  # and a partial sum, of one among others
SPEED_STEP = math.log(1.05)  # speeds count in steps of 5%: a calibration is no better than that
ACTIVATION_BYTES_PER_FLOP = 0.1  # above what common networks keep for their backward


@lru_cache(maxsize=1024)
def kind_of_device(device: str) -> str:
    """Of "cpu", "cuda:0", "mps": what is before the number."""
    return device.split(":")[0]


@lru_cache(maxsize=1 << 16)
def in_steps(value: float) -> float:
    """The nearest of the steps in which speeds count."""
    return math.exp(round(math.log(value) / SPEED_STEP) * SPEED_STEP)


class Calibration(BaseModel):
    """A node's speed, by a short fixed benchmark at its join. flop_per_s: of one core, or of the device.

    at: seconds since the epoch, as of every measurement here.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    flop_per_s: float
    at: float

    @property
    def kind(self) -> str:
        return kind_of_device(self.device)


class Link(BaseModel):
    """The way from one node to another, as a small burst measured it. ends: their ids, sorted: both ways count alike.

    latency_s: one way. bytes_per_s: of one connection, in the slower direction; 0 where the nodes can't reach each
    other, and `failure` says why.
    """

    model_config = ConfigDict(frozen=True)

    ends: tuple[str, str]
    latency_s: float
    bytes_per_s: float
    at: float
    failure: str | None = None


class CellTime(BaseModel):
    """Seconds that forward and backward of one microbatch of so many samples take."""

    model_config = ConfigDict(frozen=True)

    samples: int
    seconds: float


class Profile(BaseModel):
    """What one model costs on one hardware class and kind of device ("cpu", "cuda", "mps").

    cells: at a few sizes, ascending. update_s: what a step takes once, whatever its share: clipping, optimizer.
    state_bytes: parameters, gradients, optimizer state and buffers. activation_bytes: the most that a microbatch of
    `cell_samples` adds for its forward and backward. recomputed_bytes: the same where a sharded model's units compute
    them again; 0 where that is not known. worker_bytes: growth over a bare worker, data included. exchange_bytes:
    gradients of one step. build_s: until a fresh worker is ready. probed: else its times are of training alone, and its
    sizes an estimate. steps: of real training that its times are of, or that refined a probe's. flop_per_s: the
    calibrated speed of the node that measured, which carries the times over to slower and faster nodes; None where it
    is not known.

    Without cells the model did not fit where it was probed: it needs `worker_bytes` at least, and has no times.
    """

    model_config = ConfigDict(frozen=True)

    hardware_class: str
    device: str
    cells: tuple[CellTime, ...]
    cell_samples: int
    update_s: float
    state_bytes: int
    activation_bytes: int
    recomputed_bytes: int = 0
    worker_bytes: int
    exchange_bytes: int
    build_s: float
    probed: bool = True
    steps: int = 0
    flop_per_s: float | None = None
    at: float


class Measured(BaseModel):
    """All that is known when a job is planned. profiles: of its model, at most one for each class and device."""

    model_config = ConfigDict(frozen=True)

    profiles: tuple[Profile, ...] = ()
    links: tuple[Link, ...] = ()


def rough_bytes(options: TrainOptions, facts: Facts) -> float:
    """What a worker needs, by the facts alone, rather too much than too little; 0 for a model that nobody has seen."""
    cell_samples = -(-options.batch_size // options.microbatches)
    activations = ACTIVATION_BYTES_PER_FLOP * cell_samples * (facts.flop_per_sample or 0.0)
    return MOST_COPIES * (facts.parameter_bytes or 0) + activations
