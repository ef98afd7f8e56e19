"""What a job's rounds have committed: its training, the checkpoints of it, and its copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from paceline.messages.message import CheckpointRef


class Training(BaseModel):
    """What is committed: it names the model's state exactly, and goes back to a checkpoint's as a whole."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    train_samples: int | None = None
    step: int = 0
    loss_sum: float = 0.0
    loss_samples: int = 0
    evaluated_step: int = 0
    history: tuple[dict[str, float], ...] = ()
    best: float | None = None
    best_step: int | None = None
    unmarked_best: bool = False


class Checkpoint(BaseModel):
    """A published checkpoint and what was committed at its step."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    ref: CheckpointRef
    training: Training


@dataclass(frozen=True)
class Copies:
    """All shards of one commit, copied into nodes' memory, and what was committed at its step. nodes: bytes, by id."""

    step: int
    training: Training
    nodes: Mapping[str, int]
