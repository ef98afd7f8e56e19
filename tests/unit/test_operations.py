"""Operations a sample: counted by hand for each kind of layer, without a trace, and None where they can't be told."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.client.data import normalize
from paceline.client.operations import MOST_ELEMENTS, flop_per_sample
from paceline.client.submission import prepare
from paceline.spec import Facts, TrainOptions


def spec(model: Any, *shape: int, **changes: Any) -> pl.TrainSpec:
    """A job on 64 samples of this shape."""
    made = torch.Generator().manual_seed(0)
    fields: dict[str, Any] = {
        "model": model,
        "train_data": (torch.randn(64, *shape, generator=made), torch.zeros(64)),
        "loss": torch.nn.functional.mse_loss,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "batch_size": 64,
        "stop": pl.MaxSteps(1),
    }
    return pl.TrainSpec(**{**fields, **changes})


def counted(model: Any, *shape: int, **changes: Any) -> float | None:
    made = spec(model, *shape, **changes)
    return flop_per_sample(made, normalize(made.train_data, "train_data"))


def sent(model: Any, *shape: int, **changes: Any) -> tuple[TrainOptions, Facts]:
    submission = prepare(spec(model, *shape, **changes)).submission
    return submission.options, submission.facts


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


class Own(nn.Module):
    """A matrix of its own, and state of every kind that a forward may change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.norm = nn.BatchNorm1d(4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(1), np.random.random(), random.random()
        return self.norm(x @ self.weight)


LAYERS = {
    "a linear layer, once": (nn.Linear(3, 5), (3,), 2 * 15),
    "a linear layer at 7 places": (nn.Linear(3, 5), (7, 3), 2 * 15 * 7),
    "a convolution": (nn.Conv2d(2, 4, 3), (2, 6, 6), 2 * (4 * 2 * 9) * 16),
    "a convolution in groups": (nn.Conv2d(2, 4, 3, groups=2), (2, 6, 6), 2 * (4 * 9) * 16),
    "a transposed convolution": (nn.ConvTranspose1d(2, 3, 4), (2, 5), 2 * (2 * 3 * 4) * 5),
    "an LSTM in two directions": (
        nn.Sequential(nn.LSTM(3, 5, bidirectional=True, batch_first=True), nn.Identity()),
        (7, 3),
        2 * 2 * (20 * 3 + 20 * 5) * 7,
    ),
    "attention, by its projections": (Attention(), (6, 8), 2 * (4 * 64) * 6),
    "a matrix of the model's own": (Own(), (3,), 2 * 12),
    "a layer that is used twice": (nn.Sequential(*[nn.Linear(3, 3)] * 2), (3,), 2 * 2 * 9),
}


@pytest.mark.parametrize("what", LAYERS)
def test_counted_are_the_operations_of(what: str) -> None:
    model, shape, flop = LAYERS[what]
    assert counted(model, *shape) == flop


def test_an_encoder_counts_the_same_in_either_mode() -> None:
    """In evaluation torch would take another way, past the layers."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert counted(encoder, 6, 8) == counted(encoder.eval(), 6, 8) == 2 * 2 * (4 * 64 + 2 * 128) * 6
    assert not encoder.training


def test_counting_leaves_no_trace() -> None:
    model = Own()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    randoms = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert counted(model, 3) is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.calls == 0
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), randoms[0])
    assert np.array_equal(np.random.get_state()[1], randoms[1])
    assert random.getstate() == randoms[2]


class Large(nn.Linear):
    """Says that it is large; its forward must not run."""

    def parameters(self, recurse: bool = True) -> Any:
        yield torch.nn.Parameter(torch.empty(1).expand(MOST_ELEMENTS + 1))


compiled = nn.Linear(3, 1)
compiled._compiled_call_impl = lambda x: pytest.fail("compiled")  # what Module.compile() sets


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while True:
            x = self.layer(x)


UNKNOWN = {
    "a builder": (partial(nn.Linear, 3, 1), {}),
    "a forward that raises": (nn.Linear(4, 1), {}),
    "a model that is too large for a small machine": (Large(3, 1), {}),
    "a compiled model": (compiled, {}),
    "a forward that never ends": (Endless(), {}),
    "a training step": (nn.Linear(3, 1), {"loss": None, "training_step": lambda model, batch: model(batch).sum()}),
    "samples that are augmented": (nn.Linear(3, 1), {"augment": lambda sample: sample}),
    "batches that are collated": (nn.Linear(3, 1), {"collate": list}),
    "a Dataset": (nn.Linear(3, 1), {"train_data": torch.utils.data.TensorDataset(torch.zeros(64, 3), torch.zeros(64))}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_not_counted_and_cut_into_eight_is(what: str) -> None:
    model, changes = UNKNOWN[what]
    assert counted(model, 3, **changes) is None
    options, facts = sent(model, 3, **changes)
    assert (options.microbatches, facts.flop_per_sample, facts.chose_microbatches) == (8, None, True)


def test_a_small_model_is_sent_with_one_microbatch_and_a_large_one_with_several() -> None:
    options, facts = sent(nn.Linear(3, 1), 3)
    assert (options.microbatches, facts.flop_per_sample) == (1, 6)
    assert sent(nn.Conv2d(1, 32, 3, padding=1), 1, 100, 100)[0].microbatches == 2
    assert sent(nn.Conv2d(1, 32, 3, padding=1), 1, 300, 300)[0].microbatches == 8


def test_the_number_that_a_spec_gives_overrules_the_count() -> None:
    options, facts = sent(nn.Linear(3, 1), 3, microbatches=4)
    assert (options.microbatches, facts.flop_per_sample, facts.chose_microbatches) == (4, 6, False)


def test_counting_loads_nothing_large() -> None:
    """What counts by intercepting every operation would load sympy, for seconds."""
    script = (
        "import sys, torch, paceline as pl\nfrom functools import partial\nfrom paceline.client.submission import prepare\n"
        "prepare(pl.TrainSpec(model=torch.nn.Linear(3, 1), train_data=(torch.zeros(4, 3), torch.zeros(4, 1)),"
        " loss=torch.nn.functional.mse_loss, optimizer=partial(torch.optim.SGD, lr=0.1), batch_size=4,"
        " stop=pl.MaxSteps(1)))\nprint(*{name.split('.')[0] for name in sys.modules} & {'sympy', 'ray', 'fastapi'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
