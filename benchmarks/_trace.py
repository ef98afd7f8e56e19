"""A day of jobs, drawn from a published model of what users of a shared cluster submit.

Sizes, run times and the daily cycle: Lublin and Feitelson, "The workload on parallel supercomputers: modeling the
characteristics of rigid jobs", JPDC 63(11), 2003, with the parameters of its whole sample for 128 processors. A quarter
of the jobs is serial, most others take a power of two; run times are a hyper-gamma in log space, short ones and long
ones, longer for the wide. Arrivals are Poisson over the model's daily cycle, as many as make the offered load; the
model's own burstiness is left out. Users by Zipf's law. Urgent jobs and errors of prediction are ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

PLACES = 128
DAY_S = 86_400.0
SERIAL, POWER_OF_TWO = 0.244, 0.576
LOW, MIDDLE, HIGH, LOWER = 0.8, 4.5, 7.0, 0.86  # two-stage uniform, log2 of a parallel job's places
SHORT, LONG = (4.2, 0.94), (312.0, 0.03)  # gammas of log seconds
SHORT_SLOPE, SHORT_BASE = -0.0054, 0.78  # share of short jobs by places
MOST_LOG_S = 12.0
CYCLE = (8.1737, 3.9631)  # gamma over half hours of a day that begins at 05:30
FIRST_BUCKET, BUCKETS = 11, 48
USERS = 12
URGENT, URGENT_PRIORITY = 0.1, 24  # worth a day of waiting
ERROR = 0.15  # standard deviation of a prediction's logarithm


@dataclass(frozen=True)
class TraceJob:
    """places: workers, all at once. seconds: that it runs. predicted_s: what the scheduler is told."""

    id: str
    at: float
    places: int
    seconds: float
    predicted_s: float
    user: str
    priority: int


def day(seed: int, load: float) -> list[TraceJob]:
    """Jobs in the order of their arrival. load: their work as a share of what the cluster can do in a day."""
    chance = random.Random(seed)
    shapes = list(_shapes(chance, load * PLACES * DAY_S))
    times = sorted(_arrival(chance) for _ in shapes)
    users = [1 / rank for rank in range(1, USERS + 1)]
    return [
        TraceJob(
            id=f"job-{number:04}",
            at=at,
            places=places,
            seconds=seconds,
            predicted_s=seconds * math.exp(chance.gauss(0.0, ERROR)),
            user=f"user-{chance.choices(range(USERS), users)[0]}",
            priority=URGENT_PRIORITY if chance.random() < URGENT else 0,
        )
        for number, (at, (places, seconds)) in enumerate(zip(times, shapes, strict=True))
    ]


def _shapes(chance: random.Random, work: float) -> Iterator[tuple[int, float]]:
    """(places, seconds) until their product adds up to the work."""
    while work > 0:
        places = _places(chance)
        seconds = _seconds(chance, places)
        work -= places * seconds
        yield places, seconds


def _places(chance: random.Random) -> int:
    kind = chance.random()
    if kind <= SERIAL:
        return 1
    low, high = (LOW, MIDDLE) if chance.random() <= LOWER else (MIDDLE, HIGH)
    power = chance.uniform(low, high)
    return round(2 ** (math.floor(power + 0.5) if kind <= SERIAL + POWER_OF_TWO else power))


def _seconds(chance: random.Random, places: int) -> float:
    share = min(1.0, max(0.0, SHORT_SLOPE * places + SHORT_BASE))
    while True:
        log_s = chance.gammavariate(*(SHORT if chance.random() <= share else LONG))
        if log_s <= MOST_LOG_S:
            return math.exp(log_s)


def _arrival(chance: random.Random) -> float:
    """Seconds after midnight."""
    while True:
        bucket = chance.gammavariate(*CYCLE)
        if FIRST_BUCKET <= bucket < FIRST_BUCKET + BUCKETS:
            return (bucket % BUCKETS) * DAY_S / BUCKETS
