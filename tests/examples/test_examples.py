"""The examples reach the quality that their docstrings state; every test run has a smaller variant of the long ones."""

from __future__ import annotations

import ast
import importlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import paceline as pl

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def machine() -> Iterator[pl.Client]:
    """An embedded master whose node has two cores, as the examples' docstrings assume."""
    with pl.Client(local=True, cores=2) as client:
        yield client


def example(name: str) -> ModuleType:
    """The example, imported as `paceline train` does; where its data can't be had, a skip that says how to get them."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


def train(client: pl.Client, spec: pl.TrainSpec, **changes: Any) -> pl.Result:
    """Train an example's spec, or a smaller variant of it."""
    return client.submit(pl.TrainSpec(**{**dict(spec), **changes})).result(timeout=900)


def test_the_readmes_example_runs_as_it_is_printed(machine: pl.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "Client", lambda **_: machine)
    printed = (EXAMPLES.parent / "README.md").read_text().split("```python\n")[1].split("```")[0]
    left: dict[str, Any] = {"__name__": "__main__"}  # so that its functions travel by value, as a script's do
    exec(printed, left)
    assert left["result"].metrics["val_accuracy"] > 0.9
    assert left["result"].reproducible
    assert isinstance(left["trained"], torch.nn.Sequential)
    assert {type(values[name]) for values in left["result"].history for name in ("step", "samples")} == {int}


def test_digits_reaches_97_percent(machine: pl.Client) -> None:
    digits = example("digits")
    result = train(machine, digits.spec)
    assert max(values["val_accuracy"] for values in result.history) >= digits.EXPECTED_ACCURACY == 0.97
    assert result.reproducible


@pytest.mark.slow
def test_digits_run_as_a_script_prints_its_accuracy_and_exits_0() -> None:
    script = [sys.executable, str(EXAMPLES / "digits.py")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validation accuracy 9" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_fashion_mnist_reaches_80_percent_from_a_sixth_of_the_images(machine: pl.Client) -> None:
    spec = example("fashion_mnist").spec
    images, labels = spec.train_data
    test_images, test_labels = spec.val_data
    result = train(
        machine,
        spec,
        train_data=(images[:10_000], labels[:10_000]),
        val_data=(test_images[:2_000], test_labels[:2_000]),
        stop=pl.MaxEpochs(2),
    )
    assert result.history[-1]["val_accuracy"] >= 0.80
    assert len(result.plan.workers) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fashion_mnist_reaches_90_percent(machine: pl.Client) -> None:
    fashion_mnist = example("fashion_mnist")
    result = train(machine, fashion_mnist.spec)
    assert result.history[-1]["val_accuracy"] >= fashion_mnist.EXPECTED_ACCURACY == 0.90
    assert [epoch["committed"] for epoch in result.ledger] == [60_000] * 5


@pytest.mark.slow
def test_shakespeare_learns_more_than_letter_frequencies_in_40_steps(machine: pl.Client) -> None:
    shakespeare = example("shakespeare")
    val_data = tuple(column[:500] for column in shakespeare.spec.val_data)
    result = train(machine, shakespeare.spec, val_data=val_data, stop=pl.MaxSteps(40), eval_every=40)
    assert result.history[-1]["val_loss"] <= 2.75  # 3.29 by the letters' frequencies
    written = shakespeare.write(result.model, shakespeare.alphabet, start="HAMLET.\n", length=20)
    assert written.startswith("HAMLET.\n")
    assert len(written) == 28


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shakespeare_reaches_1_75_nats_per_character(machine: pl.Client) -> None:
    shakespeare = example("shakespeare")
    result = train(machine, shakespeare.spec)
    assert result.history[-1]["val_loss"] <= shakespeare.EXPECTED_LOSS == 1.75


@pytest.mark.slow
def test_flights_beats_the_mean_and_the_linear_model_in_two_epochs(machine: pl.Client) -> None:
    flights = example("flights")
    train_table, val_table = flights.train_table, flights.val_table
    assert len(train_table) + len(val_table) == 327_346
    result = train(machine, flights.spec, stop=pl.MaxEpochs(2))
    mean, linear = flights.baselines(train_table, val_table)
    assert 45 < mean < 46
    assert 17 < linear < 17.5
    assert math.sqrt(result.history[-1]["val_loss"]) < linear


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flights_reaches_its_rmse_and_its_model_predicts_what_was_evaluated(machine: pl.Client) -> None:
    import torch

    flights = example("flights")
    result = train(machine, flights.spec)
    reached = math.sqrt(result.history[-1]["val_loss"])
    assert reached <= flights.EXPECTED_RMSE == 16.6
    columns = torch.tensor(flights.val_table.drop(columns="arr_delay").to_numpy(), dtype=torch.float32)
    with torch.no_grad():
        predicted = result.model.eval()(columns).numpy()
    assert flights.rmse(predicted, flights.val_table) == pytest.approx(reached, rel=1e-4)


@pytest.mark.slow
def test_the_notebook_trains_the_digits_to_97_percent() -> None:
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store the notebook without outputs"
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    last = ast.literal_eval(notebook.cells[-1].outputs[0]["data"]["text/plain"])
    assert last["val_accuracy"] >= 0.97


def subset(data: Any, samples: int) -> Any:
    import torch

    return torch.utils.data.Subset(data, range(samples))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tuning_learns_the_plays_from_a_few_speeches(machine: pl.Client) -> None:
    fine_tune = example("fine_tune")
    train_data, val_data = subset(fine_tune.train_data, 320), subset(fine_tune.val_data, 200)
    result = train(machine, fine_tune.spec, train_data=train_data, val_data=val_data, stop=pl.MaxEpochs(1))
    assert result.history[-1]["val_loss"] < 1.79  # of guessing among six
    assert len(result.plan.workers) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [False, True])
def test_fine_tuning_reaches_its_accuracy(machine: pl.Client, lora: bool) -> None:
    fine_tune = example("fine_tune")
    expected = fine_tune.EXPECTED_WITH_LORA if lora else fine_tune.EXPECTED_ACCURACY
    result = train(machine, fine_tune.spec_of(lora))
    assert result.history[-1]["val_accuracy"] >= expected
    if lora:
        frozen = [name for name in result.state_dict if name.endswith("query.base_layer.weight")]
        assert frozen
        before = fine_tune.spec_of(lora).model.state_dict()
        assert all(bool((before[name] == result.state_dict[name]).all()) for name in frozen)
