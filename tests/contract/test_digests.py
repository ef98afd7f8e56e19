"""One digest for a spec, whoever trains it: models, optimizers, precision, clipping, schedules and augmentation.

The combinations cover every pair of choices at least once; `docs/guarantees.md` promises these and no others.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paceline as pl

from helpers import wait_until
from workloads import Cnn, Rested, Transformer, digits, mlp, spec

MODELS = {"mlp": mlp, "cnn": Cnn, "transformer": Transformer}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05),
}
# model, optimizer, precision, clip, schedule, augment, workers
COMBINATIONS = [
    ("mlp", "sgd", "fp32", None, False, False, (2, 3)),
    ("mlp", "adamw", "bf16-mixed", 1.0, True, True, (5,)),
    ("cnn", "sgd", "bf16-mixed", None, True, True, (3,)),
    ("cnn", "adamw", "fp32", 1.0, False, False, (2, 5, 8)),
    ("cnn", "adamw", "fp32", None, True, False, (8,)),
    ("transformer", "sgd", "fp32", 1.0, True, True, (2,)),
    ("transformer", "adamw", "bf16-mixed", None, False, False, (3, 8)),
    ("transformer", "adamw", "fp32", None, False, True, (5,)),
]


def warmup(seen: int, total: int) -> float:
    return min(1.0, 4 * seen / total) * (1 - 0.5 * seen / total)


def augment(sample: tuple[Any, Any]) -> tuple[Any, Any]:
    """Noise from all three generators: each must be seeded by the sample."""
    x, y = sample
    noise = torch.randn(x.shape) * 0.1 + float(np.random.normal(0, 0.01))
    return torch.as_tensor(x) * random.uniform(0.9, 1.1) + noise, y


def no_weight_decay_on_biases(named: Any) -> torch.optim.Optimizer:
    named = list(named)
    biases = [p for name, p in named if name.endswith("bias")]
    weights = [p for name, p in named if not name.endswith("bias")]
    return torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}], lr=2e-3)


def results(client: pl.Client, specs: Sequence[pl.TrainSpec]) -> list[pl.Result]:
    """Of jobs that train at the same time, where there is room, and lose nobody."""
    jobs = [client.submit(spec) for spec in specs]
    found = [job.result(timeout=120) for job in jobs]
    assert [event.data for job in jobs for event in job.events() if event.kind == "worker_lost"] == []
    return found


@pytest.mark.parametrize(("model", "optimizer", "precision", "clip", "schedule", "augmented", "counts"), COMBINATIONS)
def test_digest_does_not_depend_on_the_number_of_workers(
    client: pl.Client,
    model: str,
    optimizer: str,
    precision: str,
    clip: float | None,
    schedule: bool,
    augmented: bool,
    counts: tuple[int, ...],
) -> None:
    fields = {
        "model": MODELS[model],
        "optimizer": OPTIMIZERS[optimizer],
        "precision": precision,
        "clip_grad_norm": clip,
        "lr_schedule": warmup if schedule else None,
        "augment": augment if augmented else None,
    }
    one, *others = results(client, [spec(workers=workers, **fields) for workers in (1, *counts)])
    for workers, many in zip(counts, others, strict=True):
        assert len(many.plan.workers) == workers
        assert many.digest == one.digest
        assert many.history == one.history


def test_parameter_groups_of_the_users_own_keep_the_digest(client: pl.Client) -> None:
    one, three = results(client, [spec(optimizer=no_weight_decay_on_biases, workers=workers) for workers in (1, 3)])
    assert one.digest == three.digest


def test_a_dataset_built_on_the_node_gives_the_digest_of_the_same_arrays(client: pl.Client) -> None:
    x, y = digits()[0]

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> Any:
            return torch.tensor(x[index]), int(y[index])

    arrays, rows, built = results(client, [spec(), spec(train_data=Rows()), spec(train_data=Rows, workers=2)])
    assert arrays.digest == rows.digest == built.digest


class OneIsSlow(Rested):
    """Rests a hundred times as long in the worker that makes the folder first."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            self.rest_s *= 100


def test_a_worker_that_is_too_slow_for_any_share_of_a_dataset_is_lost_to_nobody(
    client: pl.Client, tmp_path: Path
) -> None:
    rows = torch.utils.data.TensorDataset(*map(torch.from_numpy, digits()[0]))
    fields: dict[str, Any] = {"train_data": rows, "stop": pl.MaxEpochs(2)}
    slow = client.submit(spec(partial(OneIsSlow, str(tmp_path / "slow")), workers=3, **fields))
    one, three = client.submit(spec(Rested, workers=1, **fields)).result(timeout=120), slow.result(timeout=120)
    assert three.digest == one.digest
    assert "worker_lost" not in [event.kind for event in slow.events()]


class ChannelsLast(Cnn):
    """Refuses to train in any other layout than the one it was handed over with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            assert conv.weight.stride()[1] == 1, "a convolution's channels are no longer its innermost dimension"
        return super().forward(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x)


def channels_last(workers: int, **changes: Any) -> pl.TrainSpec:
    torch.manual_seed(0)
    model = ChannelsLast(16).to(memory_format=torch.channels_last)
    return spec(model, workers=workers, **{"batch_size": 48, "clip_grad_norm": 1.0, **changes})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_channels_last_model_has_one_digest_on_one_worker_and_two(client: pl.Client, optimizer: str) -> None:
    one, two = results(client, [channels_last(workers, optimizer=OPTIMIZERS[optimizer]) for workers in (1, 2)])
    assert one.digest == two.digest


@pytest.mark.slow
def test_a_channels_last_model_keeps_its_digest_where_a_worker_joins(client: pl.Client) -> None:
    """It copies a member's state: model and optimizer, in their layout."""
    long = {"stop": pl.MaxEpochs(15)}
    expected = client.submit(channels_last(1, **long)).result(timeout=120).digest
    job = client.submit(channels_last(1, **long))
    wait_until(lambda: any(worker["last_step"] > 10 for worker in job.workers()))
    job.scale(2)
    assert job.result(timeout=120).digest == expected
    assert [event.kind for event in job.events()].count("worker_joined") == 1


def test_a_different_seed_gives_a_different_model(client: pl.Client) -> None:
    one, other = results(client, [spec(seed=seed) for seed in (1, 2)])
    assert one.digest != other.digest


def falling(seen: int, total: int) -> float:
    return 1 - seen / total


@pytest.mark.parametrize(("schedule", "clip"), [(None, None), (falling, None), (None, 0.05)])
def test_exact_training_equals_an_ordinary_loop_over_the_whole_batch(
    client: pl.Client, schedule: Callable[[int, int], float] | None, clip: float | None
) -> None:
    from paceline.grid import Grid

    (x, y), _ = digits()
    model, seen = mlp(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grid = Grid(len(x), 64, 8, False, 0)
    for step in range(grid.steps_per_epoch):
        index = np.concatenate([grid.cell_samples(step, cell) for cell in range(grid.num_cells(step))])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.tensor(x[index])), torch.tensor(y[index])).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = 0.1 * schedule(seen, len(x))
        optimizer.step()
        seen += len(index)
    asked = {"lr_schedule": schedule, "clip_grad_norm": clip, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    trained = client.submit(spec(workers=2, **asked)).result(timeout=60).state_dict
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-4, atol=1e-5)


def test_each_option_that_should_changes_the_model(client: pl.Client) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"lr_schedule": warmup}, {"clip_grad_norm": 0.05}, {"precision": "bf16-mixed"}, {"augment": augment},
        {"drop_last": True}, {"microbatches": 4},
    ]  # fmt: skip
    found = results(client, [spec(**change) for change in changes])
    assert len({result.digest for result in found}) == len(changes)


def test_a_job_that_wall_time_ended_says_that_it_is_not_reproducible(client: pl.Client) -> None:
    result = client.submit(spec(stop=pl.MaxTime("1s") | pl.MaxEpochs(100_000))).result(timeout=60)
    assert not result.reproducible
    assert "wall time" in (result.irreproducible_because or "")
    assert client.submit(spec(stop=pl.MaxTime("10m") | pl.MaxEpochs(1))).result(timeout=60).reproducible
