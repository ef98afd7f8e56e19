"""The work of overhead.py: three models on made-up data of real shapes, trained long enough to see a steady rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

MICROBATCHES, WARM_UP_STEPS = 8, 20

optimizer = partial(torch.optim.AdamW, lr=1e-4)  # small, so that differences of rounding do not grow over the steps
loss = cross_entropy


@dataclass(frozen=True)
class Workload:
    """steps: with the warm-up; enough for some ten seconds on one core of 2023."""

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    batch: int
    steps: int


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """20,000 of the shape of Fashion-MNIST, (n, 1, 28, 28): a pattern for each of ten classes, under noise.

    A fifth of the labels is wrong, so that the loss stays far from zero, where any two loops would agree.
    """
    made = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 10, (20_000,), generator=made)
    patterns = torch.randn(10, 1, 28, 28, generator=made)
    images = patterns[classes] + 3 * torch.randn(20_000, 1, 28, 28, generator=made)
    wrong = torch.rand(20_000, generator=made) < 0.2
    return images, torch.where(wrong, torch.randint(0, 10, (20_000,), generator=made), classes)


def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """20,000 lines of 32 of 64 letters, (n, 32); the target is which letter comes after the line."""
    made = torch.Generator().manual_seed(0)
    texts = torch.randint(0, 64, (20_000, 33), generator=made)
    texts[:, -1] = (texts[:, 0] + texts[:, -2]) % 64
    return texts[:, :-1].contiguous(), texts[:, -1].contiguous()


def _cnn() -> nn.Module:
    """0.82 million parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * 7 * 7, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def _mlp() -> nn.Module:
    """0.27 million parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


class _Transformer(nn.Module):
    """0.42 million parameters; no dropout, whose random numbers a bare loop would draw in another order."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.letters = nn.Embedding(64, width)
        self.places = nn.Parameter(torch.randn(32, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 64)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.letters(letters) + self.places)[:, -1])


def _transformer() -> nn.Module:
    torch.manual_seed(0)
    return _Transformer()


WORKLOADS = {
    "cnn": Workload(_cnn, _images, batch=64, steps=170),
    "transformer": Workload(_transformer, _texts, batch=64, steps=120),
    "mlp": Workload(_mlp, _images, batch=256, steps=1020),
}
