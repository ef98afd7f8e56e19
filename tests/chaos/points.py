"""A small real job, and the same with a fault at each point where a user's code can meet one.

The model holds all that a cut batch could change, and rests for a moment in each forward: a job takes long enough for
a worker to be replaced, and little of the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import paceline as pl
from paceline.testing.sabotage import Sabotage

from workloads import Rested, accuracy, digits

EPOCHS = 5


def slow(*values: object) -> list[object]:
    """Parameters for the long suite only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


class Pixels(torch.utils.data.Dataset):
    """Digits one by one, so that processes of their own read them. `passing` is called before each."""

    def __init__(self, x: np.ndarray, y: np.ndarray, passing: Callable[[], None] | None = None) -> None:
        self.x, self.y, self.passing = x, y, passing

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.passing is not None:
            self.passing()
        return torch.from_numpy(self.x[index]), int(self.y[index])


def built(point: str, fault: Sabotage, **rested: Any) -> torch.nn.Module:
    """A `Rested` model with a fault at a point of its life."""
    if point == "build":
        fault()
    model = Rested(**rested)
    {
        "build": lambda: None,
        "forward": lambda: model.register_forward_pre_hook(fault),
        "backward": lambda: model.last.weight.register_post_accumulate_grad_hook(fault),
        "backward_end": lambda: model.first.weight.register_post_accumulate_grad_hook(fault),
        "copy_out": lambda: model.register_state_dict_pre_hook(fault),
        "copy_in": lambda: model.register_load_state_dict_pre_hook(fault),
    }[point]()
    return model


def optimized(point: str, fault: Sabotage, parameters: Any) -> torch.optim.Optimizer:
    """The optimizer with a fault before or after each update."""
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    {"update": optimizer.register_step_pre_hook, "updated": optimizer.register_step_post_hook}[point](fault)
    return optimizer


def unchanged(sample: Any) -> Any:
    return sample


def at(point: str, fault: Sabotage, **rested: Any) -> dict[str, Any]:
    """The job's changes that put the fault at the point. rested: fields of the `Rested` model."""
    model = partial(Rested, **rested)
    match point:
        case "read":
            return {"model": model, "train_data": Pixels(*digits()[0], fault)}
        case "augment":
            return {"model": model, "train_data": Pixels(*digits()[0]), "augment": fault.before(unchanged)}
        case "update" | "updated":
            return {"model": model, "optimizer": partial(optimized, point, fault)}
        case "metric":
            return {"model": model, "metrics": {"accuracy": fault.before(accuracy)}}
    return {"model": partial(built, point, fault, **rested)}


def job_of(workers: int, **changes: Any) -> pl.TrainSpec:
    """Five epochs, evaluated after each, of which the best is kept."""
    train, val = digits()
    fields: dict[str, Any] = {
        "model": Rested,
        "train_data": train,
        "val_data": val,
        "loss": torch.nn.functional.cross_entropy,
        "optimizer": partial(torch.optim.AdamW, lr=3e-3),
        "batch_size": 64,
        "microbatches": 8,
        "metrics": {"accuracy": accuracy},
        "keep": "best:val_loss",
        "clip_grad_norm": 1.0,
        "stop": pl.MaxEpochs(EPOCHS),
        "resources": pl.Resources(workers=workers),
    }
    return pl.TrainSpec(**{**fields, **changes})
