"""Small real models and data that the tests train."""

from __future__ import annotations

import os
import time
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

import paceline as pl

REST_S, HELD_S = 0.001, 0.02


@lru_cache
def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's handwritten digits as ((X, y) for training, (X, y) for validation), shuffled once."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def mlp(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


class Cnn(torch.nn.Module):
    """Batch-norm and dropout: everything that a cut batch could change."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, channels, 3, padding=1)
        self.norm1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.norm2 = torch.nn.BatchNorm2d(2 * channels)
        self.dropout = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(2 * channels * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x.reshape(-1, 1, 8, 8))))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(self.dropout(torch.nn.functional.max_pool2d(x, 2).flatten(1)))


class Rested(torch.nn.Module):
    """Batch-norm and dropout over a digit's pixels.

    It rests `rest_s` in each forward, and far longer as long as the file `held_by` is there, so that a job can't end
    before a test has done to it what it must. That changes how long a job takes, and nothing else.
    """

    def __init__(self, rest_s: float = REST_S, held_by: str = "") -> None:
        super().__init__()
        self.rest_s, self.held_by = rest_s, held_by
        self.first = torch.nn.Linear(64, 32)
        self.norm = torch.nn.BatchNorm1d(32)
        self.dropout = torch.nn.Dropout(0.1)
        self.last = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(HELD_S if self.held_by and os.path.exists(self.held_by) else self.rest_s)
        return self.last(self.dropout(torch.relu(self.norm(self.first(x)))))


class Transformer(torch.nn.Module):
    """The rows of a digit as a sequence of 8 tokens."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x.reshape(-1, 8, 8))).mean(1))


def spec(model: Any = None, *, workers: int | None = None, **changes: Any) -> pl.TrainSpec:
    """A job on the digits; one epoch of an MLP unless the changes say otherwise."""
    train, val = digits()
    fields: dict[str, Any] = {
        "model": mlp() if model is None else model,
        "train_data": train,
        "val_data": val,
        "loss": torch.nn.functional.cross_entropy,
        "optimizer": partial(torch.optim.AdamW, lr=3e-3),
        "batch_size": 64,
        "microbatches": 8,  # so small a model would get one, and so one worker
        "metrics": {"accuracy": accuracy},
        "stop": pl.MaxEpochs(1),
        "resources": pl.Resources(workers=workers) if workers else "auto",
    }
    return pl.TrainSpec(**{**fields, **changes})
