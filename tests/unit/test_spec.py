"""TrainSpec: what it refuses, with code and remedy, and what it makes of what it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import paceline as pl
from paceline.grid import Grid
from paceline.spec import PROGRAM_FIELDS, Keep, PackageRef, Submission, TrainOptions, parse_bytes

from builders import options, submission


def spec(**changes: Any) -> pl.TrainSpec:
    fields: dict[str, Any] = {
        "model": torch.nn.Linear(2, 1),
        "train_data": (np.zeros((4, 2)), np.zeros(4)),
        "loss": torch.nn.functional.mse_loss,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "batch_size": 4,
        "stop": pl.MaxEpochs(1),
    }
    return pl.TrainSpec(**{**fields, **changes})


def stream() -> Iterator[int]:
    yield 1


class Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return stream()


VAL = {"val_data": (np.zeros((4, 2)), np.zeros(4))}

REFUSALS: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    # what: (how, code, part of the fact, part of the remedy)
    "an unknown field": (lambda: spec(epochs=3), "invalid_spec", "there is no field epochs=", "named fields"),
    "a field that is misspelt": (lambda: spec(batchsize=3), "invalid_spec", "no field batchsize=", "mean batch_size=?"),
    "a resource that is misspelt": (lambda: pl.Resources(worker=1), "invalid_spec", "no field worker=", "workers=?"),
    "a missing stop condition": (
        lambda: pl.TrainSpec(model=1, train_data=2, optimizer=id), "invalid_spec", "stop= is missing", "pl.MaxEpochs(10)",
    ),
    "a number of epochs to stop by": (lambda: spec(stop=5), "invalid_spec", "stop=5 is not", "pl.MaxEpochs(10)"),
    "a number as resources": (lambda: spec(resources=4), "invalid_spec", "resources=4 is not", "pl.Resources(workers=4)"),
    "metrics by name": (lambda: spec(**VAL, metrics=["accuracy"]), "invalid_spec", "metrics=<list> is not", "metrics={"),
    "a metric that is no function": (lambda: spec(**VAL, metrics={"f1": 3}), "invalid_spec", "metrics['f1'] is a int", "{"),
    "an optimizer by name": (lambda: spec(optimizer="adam"), "invalid_spec", "optimizer='adam'", "functools.partial"),
    "a batch of nothing": (lambda: spec(batch_size=0), "invalid_spec", "batch_size=0: ", "named fields"),
    "a batch that is no number": (lambda: spec(batch_size="many"), "invalid_spec", "batch_size='many': ", "named fields"),
    "no threads": (lambda: spec(threads=0), "invalid_spec", "threads", ""),
    "a negative seed": (lambda: spec(seed=-1), "invalid_spec", "seed", ""),
    "no clipping bound": (lambda: spec(clip_grad_norm=0), "invalid_spec", "clip_grad_norm", ""),
    "an unknown precision": (lambda: spec(precision="fp8"), "invalid_spec", "precision", ""),
    "an unknown sync": (lambda: spec(sync="sometimes"), "invalid_spec", "sync", ""),
    "a loss that is no function": (lambda: spec(loss=1.0), "invalid_spec", "loss", ""),
    "neither loss nor training_step": (lambda: spec(loss=None), "invalid_spec", "loss= and training_step=", "one"),
    "both loss and training_step": (lambda: spec(training_step=max), "invalid_spec", "exactly one", "one"),
    "several optimizers": (lambda: spec(optimizer=[1, 2]), "invalid_spec", "2 entries", "parameter groups"),
    "a bound optimizer": (
        lambda: spec(optimizer=torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1)),
        "invalid_spec", "already bound", "functools.partial",
    ),
    "a generator": (lambda: spec(train_data=stream()), "invalid_spec", "stream (generator)", "map-style"),
    "an IterableDataset": (lambda: spec(train_data=Stream()), "invalid_spec", "stream (Stream)", "map-style"),
    "a stream to validate on": (lambda: spec(val_data=iter([1])), "invalid_spec", "stream", "map-style"),
    "metrics without validation data": (lambda: spec(metrics={"accuracy": max}), "invalid_spec", "accuracy", "val_data="),
    "an unknown metric to stop on": (
        lambda: spec(**VAL, stop=pl.MaxEpochs(1) | pl.Metric("val_acc", at_least=1)),
        "invalid_spec", "'val_acc'", "loss, val_loss",
    ),
    "an unknown metric to be patient with": (
        lambda: spec(**VAL, stop=pl.MaxEpochs(1) | pl.Patience("val_acc", 2)), "invalid_spec", "'val_acc'", "val_loss",
    ),
    "an unknown metric to keep by": (lambda: spec(keep="best:val_loss"), "invalid_spec", "'val_loss'", "evaluates: loss"),
    "keep that is neither": (lambda: spec(keep="first"), "invalid_spec", "keep='first'", ""),
    "keep that does not say which way": (lambda: spec(keep="best:bleu"), "invalid_spec", "best:bleu:min", ""),
    "a stop that may never come": (
        lambda: spec(stop=pl.Metric("loss", at_most=0)), "invalid_spec", "may never be met", "pl.MaxEpochs(100)",
    ),
    "a schedule without an end": (
        lambda: spec(lr_schedule=lambda seen, total: 1.0, stop=pl.MaxTime(60)), "invalid_spec", "lr_schedule", "MaxSteps",
    ),
    "resources that are no resources": (lambda: spec(resources="some"), "invalid_spec", "resources", ""),
    "no workers": (lambda: pl.Resources(workers=0), "invalid_spec", "workers", "named fields"),
    "an unknown resource": (lambda: pl.Resources(gpus=1), "invalid_spec", "gpus", ""),
    "an unknown device": (lambda: pl.Resources(device="tpu"), "invalid_spec", "device", ""),
    "memory that is no amount": (lambda: pl.Resources(memory="lots"), "invalid_spec", "'lots'", ""),
    "local training": (lambda: spec(sync="local"), "not_yet_supported", "sync='local'", "sync='exact'"),
    "a deadline that is no duration": (lambda: spec(deadline="soon"), "invalid_spec", "'soon' is not a duration", ""),
    "a deadline that is over": (lambda: spec(deadline=0), "invalid_spec", "deadline", "named fields"),
    "a cost below nothing": (lambda: pl.Resources(max_cost=-1), "invalid_spec", "max_cost", "named fields"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_a_spec_refuses(what: str) -> None:
    make, code, fact, remedy = REFUSALS[what]
    with pytest.raises(pl.PacelineError) as caught:
        make()
    assert caught.value.code == code
    assert fact in caught.value.fact
    assert caught.value.remedy
    assert remedy in caught.value.remedy


def test_a_spec_with_every_field_of_the_contract_is_taken() -> None:
    whole = spec(
        **VAL, lr_schedule=lambda seen, total: 1.0, clip_grad_norm=1.0, microbatches=2, threads=2, drop_last=True,
        metrics={"accuracy": max}, keep="best:val_accuracy", eval_every=5, checkpoint_every=7, resources="auto",
        sync="exact", reproducible=False, seed=3, precision="bf16-mixed", augment=abs, collate=list, priority=1,
        name="whole", stop=pl.MaxEpochs(1) | pl.Metric("val_accuracy", at_least=0.5),
    )  # fmt: skip
    assert whole.values == ("loss", "val_loss", "val_accuracy")
    assert whole.resources == pl.Resources()
    assert whole.program()["augment"] is abs


def test_options_hold_the_plain_fields_and_survive_json() -> None:
    plain = spec(seed=5, keep="last", resources={"workers": 2}).options()
    assert not set(TrainOptions.model_fields) & set(PROGRAM_FIELDS)
    assert TrainOptions.model_validate_json(plain.model_dump_json()) == plain
    assert plain.resources.workers == 2


def test_plain_and_python_fields_together_are_the_whole_spec() -> None:
    assert {*TrainOptions.model_fields, *PROGRAM_FIELDS, "train_data", "val_data"} == set(pl.TrainSpec.model_fields)


def test_a_spec_holds_the_very_objects_it_was_given() -> None:
    model, guard = torch.nn.Linear(1, 1), threading.Lock()
    data = [guard, guard]
    made = spec(model=model, train_data=data)
    assert made.model is model
    assert made.train_data is data


def test_data_may_be_a_dataset_or_a_builder_of_one() -> None:
    for data in (torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.zeros(4)), lambda: None, "not checked here"):
        assert spec(train_data=data).train_data is data


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_number_of_microbatches_is_the_number_of_cells_of_a_whole_batch(batch: int, microbatches: int) -> None:
    made = options(batch_size=batch, microbatches=microbatches)
    assert 1 <= made.microbatches <= min(batch, microbatches)
    assert Grid(batch, batch, made.microbatches, False, 0).num_cells(0) == made.microbatches
    assert Grid(batch, batch, made.microbatches, False, 0).cell_size == -(-batch // min(batch, microbatches))
    assert TrainOptions.model_validate(made.model_dump()) == made


@pytest.mark.parametrize(
    ("text", "count"),
    [(7, 7), ("7", 7), ("2GiB", 2**31), ("2 GB", 2 * 10**9), ("1.5 KiB", 1536), ("3m", 3 * 10**6), ("1TiB", 2**40)],
)
def test_amounts_of_memory_are_read_as_bytes(text: int | str, count: int) -> None:
    assert parse_bytes(text) == count
    assert pl.Resources(memory=text).memory == count


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("last", Keep()),
        ("best:val_loss", Keep(metric="val_loss", mode="min")),
        ("best:val_accuracy", Keep(metric="val_accuracy", mode="max")),
        ("best:val_accuracy:min", Keep(metric="val_accuracy", mode="min")),
        ("best:bleu:max", Keep(metric="bleu", mode="max")),
    ],
)
def test_keep_reads_the_metric_and_which_way_is_better(text: str, keep: Keep) -> None:
    assert Keep.parse(text) == keep


def test_a_submission_survives_json_and_names_all_its_blobs() -> None:
    sent = submission(stop=pl.MaxEpochs(2) | pl.Patience("val_loss", 3), resources=pl.Resources(memory="1GiB"))
    again = Submission.model_validate_json(sent.model_dump_json())
    assert again == sent
    assert [blob[0] for package in again.packages for blob in package.blobs] == ["a", "b", "c", "d"]


def test_a_submission_refuses_fields_that_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Submission.model_validate({**submission().model_dump(), "command": "rm"})


def test_a_package_names_its_pickle_first() -> None:
    assert PackageRef(pickle="p", buffers=("x", "y")).blobs == ("p", "x", "y")
