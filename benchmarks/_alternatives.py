"""What planner_regret.py compares: clusters, models, every sensible choice of nodes; and how it counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from paceline.testing.hosts import HostSpec

SAMPLES = 2048  # small, so that it is on every node soon, over the narrowest link too
ALL_SUBSETS_UP_TO = 3  # nodes
optimizer = partial(torch.optim.AdamW, lr=1e-4)
loss = cross_entropy

Nodes = tuple[str, ...]


@dataclass(frozen=True)
class Model:
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    batch: int
    microbatches: int


@dataclass(frozen=True)
class Case:
    """One job on one cluster."""

    cluster: str
    model: str

    @property
    def name(self) -> str:
        return f"{self.model} on {self.cluster}"


def _hosts(quotas: Sequence[float], mbit: float | None) -> tuple[HostSpec, ...]:
    return tuple(HostSpec("abcdef"[at], cpu=quota, mbit=mbit) for at, quota in enumerate(quotas))


# Quotas together leave the master and the links some of two cores.
CLUSTERS: Mapping[str, tuple[HostSpec, ...]] = {
    "one node": _hosts([0.8], None),
    "two, unshaped": _hosts([0.6, 0.6], None),
    "two, 50 Mbit/s": _hosts([0.6, 0.6], 50),
    "three unequal, 200 Mbit/s": _hosts([0.8, 0.2, 0.2], 200),
    "four, 100 Mbit/s": _hosts([0.35, 0.35, 0.35, 0.35], 100),
    "six unequal, 50 Mbit/s": _hosts([0.4, 0.3, 0.2, 0.2, 0.2, 0.2], 50),
}


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 1, 28, 28), ten classes."""
    made = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 1, 28, 28, generator=made), torch.randint(0, 10, (SAMPLES,), generator=made)


def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 32) of 64 letters; the target is a letter."""
    made = torch.Generator().manual_seed(0)
    return torch.randint(0, 64, (SAMPLES, 32), generator=made), torch.randint(0, 64, (SAMPLES,), generator=made)


def _mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def _cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class _Transformer(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(64, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 64)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.letters(letters))[:, -1])


def _transformer() -> nn.Module:
    torch.manual_seed(0)
    return _Transformer()


MODELS: Mapping[str, Model] = {
    "mlp": Model(partial(_mlp, 128), _images, batch=256, microbatches=8),
    "wide mlp": Model(partial(_mlp, 1024), _images, batch=128, microbatches=8),
    "cnn": Model(_cnn, _images, batch=128, microbatches=16),
    "transformer": Model(_transformer, _texts, batch=96, microbatches=12),
}

CASES: tuple[Case, ...] = (
    Case("one node", "cnn"),
    *(Case("two, unshaped", model) for model in ("mlp", "cnn", "transformer")),
    *(Case("two, 50 Mbit/s", model) for model in ("wide mlp", "cnn")),
    Case("three unequal, 200 Mbit/s", "cnn"),
    *(Case("four, 100 Mbit/s", model) for model in ("wide mlp", "transformer")),
    Case("six unequal, 50 Mbit/s", "cnn"),
)


def alternatives(hosts: Sequence[HostSpec]) -> list[Nodes]:
    """Choices of nodes worth trying, fewest first: of each kind of choice one, since equal nodes are as good.

    All subsets of few nodes; of more, the fastest few of every number, the slowest one and the slower half.
    """
    by_speed = sorted(hosts, key=lambda host: (-(host.cpu or 1.0), host.name))
    counts = range(1, len(hosts) + 1)
    if len(hosts) <= ALL_SUBSETS_UP_TO:
        choices = [some for count in counts for some in combinations(by_speed, count)]
    else:
        slowest = (tuple(by_speed[-count:]) for count in (1, len(hosts) // 2))
        choices = [*(tuple(by_speed[:count]) for count in counts), *slowest]
    kinds = {tuple(sorted((host.cpu, host.mbit) for host in some)): some for some in reversed(choices)}
    return sorted((tuple(host.name for host in some) for some in kinds.values()), key=lambda names: (len(names), names))


@dataclass
class Outcome:
    """A case's measured seconds a step, a value for each repeat.

    foreseen: (predicted, measured) by the plan that a chosen run started by, and by each that corrected it.
    """

    case: Case
    alternatives: dict[Nodes, list[float]] = field(default_factory=dict)
    chosen: list[float] = field(default_factory=list)
    foreseen: list[list[tuple[float | None, float]]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> Nodes:
        return min(self.alternatives, key=lambda nodes: statistics.median(self.alternatives[nodes]))

    @property
    def best_single(self) -> Nodes:
        single = [nodes for nodes in self.alternatives if len(nodes) == 1]
        return min(single, key=lambda nodes: statistics.median(self.alternatives[nodes]))

    def regret(self, than: Nodes) -> float:
        """How much longer the chosen plan's step takes than this alternative's, by the medians, relative."""
        return statistics.median(self.chosen) / statistics.median(self.alternatives[than]) - 1

    def beyond_spread(self, than: Nodes) -> float:
        """The regret less what the repeats of both differ by among themselves; 0 at least."""
        return max(0.0, self.regret(than) - half_range(self.chosen) - half_range(self.alternatives[than]))

    @property
    def prediction_error(self) -> float | None:
        """Of the first plan, made before any run of the model on this cluster, beside what ran by that plan."""
        predicted, measured = self.foreseen[0][0]
        return None if predicted is None else abs(predicted / measured - 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "regret": self.regret(self.best),
            "regret_beyond_spread": self.beyond_spread(self.best),
            "slower_than_best_single_node": self.regret(self.best_single),
            "prediction_error": self.prediction_error,
            "best": "+".join(self.best),
            "chosen_step_s": self.chosen,
            "predicted_and_measured_step_s": self.foreseen,
            "plans": self.plans,
            "alternatives_step_s": {"+".join(nodes): runs for nodes, runs in self.alternatives.items()},
        }


def half_range(runs: Sequence[float]) -> float:
    """Half of what the runs span, relative to their median."""
    return (max(runs) - min(runs)) / 2 / statistics.median(runs)


def seconds_per_step(commits: Sequence[tuple[float, int]], from_s: float) -> float | None:
    """commits: (when, the step it came to). From the first one at or after `from_s` seconds of the first to the last.

    None where these are fewer than two.
    """
    steady = [(at, step) for at, step in commits if at - commits[0][0] >= from_s]
    if len(steady) < 2:
        return None
    (started, first), (ended, last) = steady[0], steady[-1]
    return (ended - started) / (last - first)
