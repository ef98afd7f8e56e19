"""What was measured and a plan builds on: nodes' speed, links between them, and models' times and sizes. Plain data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Calibration(BaseModel):
    """A node's speed, by a short fixed benchmark at its join. flop_per_s: of one core, or of the device.

    at: seconds since the epoch, as of every measurement here.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    flop_per_s: float
    at: float


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
    `cell_samples` adds for its forward and backward. worker_bytes: growth over a bare worker, data included.
    exchange_bytes: gradients of one step. build_s: until a fresh worker is ready. steps: of real training that refined
    it since the probe; 0 for a probe alone. flop_per_s: the calibrated speed of the node that measured, which carries
    the times over to slower and faster nodes; None where it is not known.
    """

    model_config = ConfigDict(frozen=True)

    hardware_class: str
    device: str
    cells: tuple[CellTime, ...]
    cell_samples: int
    update_s: float
    state_bytes: int
    activation_bytes: int
    worker_bytes: int
    exchange_bytes: int
    build_s: float
    steps: int = 0
    flop_per_s: float | None = None
    at: float


class Measured(BaseModel):
    """All that is known when a job is planned. profiles: of its model, at most one for each class and device."""

    model_config = ConfigDict(frozen=True)

    profiles: tuple[Profile, ...] = ()
    links: tuple[Link, ...] = ()
