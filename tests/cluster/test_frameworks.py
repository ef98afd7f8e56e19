"""Lightning modules and Hugging Face models train as they are, to one digest on any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import paceline as pl
from paceline.frameworks.lightning import LightningSchedule

from workloads import accuracy, digits, mlp, spec

lightning = pytest.importorskip("pytorch_lightning", reason="needs paceline[frameworks]")
transformers = pytest.importorskip("transformers", reason="needs paceline[frameworks]")
peft = pytest.importorskip("peft", reason="needs paceline[frameworks]")

# ---- Lightning ----


class Digits(lightning.LightningDataModule):
    """The handwritten digits, as their docs would have them."""

    def setup(self, stage: str) -> None:
        self.train, self.val = (TensorDataset(*map(torch.from_numpy, part)) for part in digits())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=100)


class Classifier(lightning.LightningModule):
    def __init__(self, schedule: str = "epoch") -> None:
        super().__init__()
        self.net = mlp()
        self.schedule = schedule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self(batch[0])
        self.log_dict(
            {"val_loss": torch.nn.functional.cross_entropy(outputs, batch[1]), "val_acc": accuracy(outputs, batch[1])}
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.schedule}}


def by_hand(**changes: Any) -> pl.TrainSpec:
    """The same training, written for Paceline."""
    epoch = 1437  # samples
    fields: dict[str, Any] = {"stop": pl.MaxEpochs(3), "lr_schedule": lambda seen, _total: 0.5 ** (seen // epoch)}
    return spec(torch.nn.ModuleDict({"net": mlp()}), loss=None, training_step=step, metrics={}, **fields, **changes)


def step(model: Any, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model["net"](batch[0]), batch[1])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_lightning_module_trains_as_it_is_to_the_digest_of_the_same_by_hand(client: pl.Client, workers: int) -> None:
    job = client.train(
        Classifier(), Digits(), metrics=["val_acc"], stop=pl.MaxEpochs(3), microbatches=8,
        resources=pl.Resources(workers=workers),
    )  # fmt: skip
    result, same = job.result(timeout=60), client.submit(by_hand()).result(timeout=60)
    assert result.digest == same.digest
    assert result.metrics["val_loss"] == same.metrics["val_loss"]
    assert result.metrics["val_acc"] > 0.8
    assert isinstance(result.model, Classifier)


def configured(make: Callable[[Any], Any], interval: str) -> tuple[Any, Any, Any]:
    """(a module whose configure_optimizers makes this scheduler, the optimizer and scheduler of a plain loop)."""
    module = Classifier(interval)

    def configure() -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": interval}}

    module.configure_optimizers = configure  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return module, optimizer, make(optimizer)


LR = torch.optim.lr_scheduler
SCHEDULERS = {
    "step": partial(LR.StepLR, step_size=2),
    "cosine": partial(LR.CosineAnnealingLR, T_max=20),
    "one cycle": partial(LR.OneCycleLR, max_lr=1.0, total_steps=100, cycle_momentum=False),
    "warm-up": partial(LR.LambdaLR, lr_lambda=lambda k: min(1.0, (k + 1) / 7)),
}


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_gives_the_rates_of_an_ordinary_loop_from_any_step_on(name: str, interval: str) -> None:
    module, optimizer, scheduler = configured(SCHEDULERS[name], interval)
    schedule = LightningSchedule(module, interval, 1, samples_per_epoch=30, batch_size=8)
    base = optimizer.param_groups[0]["lr"]
    expected = []
    for _epoch in range(5):
        for _step in range(4):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if interval == "step":
                scheduler.step()
        if interval == "epoch":
            scheduler.step()
    seen = [epoch * 30 + step * 8 for epoch in range(5) for step in range(4)]
    resumed = LightningSchedule(module, interval, 1, samples_per_epoch=30, batch_size=8)
    assert base * resumed(seen[11], 150) == pytest.approx(expected[11])
    assert [base * schedule(samples, 150) for samples in seen] == pytest.approx(expected)


def module_with(**methods: Any) -> Any:
    return type("Odd", (Classifier,), methods)()


def several(self: Any) -> Any:
    return [torch.optim.SGD(self.parameters(), lr=1), torch.optim.SGD(self.parameters(), lr=1)]


def plateau(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LR.ReduceLROnPlateau(optimizer), "monitor": "x"}}


def by_trainer(self: Any) -> Any:
    return torch.optim.SGD(self.parameters(), lr=self.trainer.estimated_stepping_batches)


REFUSED = {
    "a hook": (module_with(on_train_epoch_end=lambda self: None), "on_train_epoch_end"),
    "a backward of its own": (module_with(backward=lambda self, loss: loss.backward()), "backward"),
    "several optimizers": (module_with(configure_optimizers=several), "2 optimizers"),
    "a schedule by a metric": (module_with(configure_optimizers=plateau), "ReduceLROnPlateau"),
    "an optimizer that asks the Trainer": (module_with(configure_optimizers=by_trainer), "needs a Trainer"),
    "manual optimization": (module_with(automatic_optimization=False), "automatic_optimization"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_lightning_module_that_needs_its_trainer_is_refused(what: str) -> None:
    module, fact = REFUSED[what]
    with pytest.raises(pl.InvalidSpec, match=fact):
        pl.TrainSpec(model=module, train_data=Digits(), stop=pl.MaxEpochs(1))


def test_loaders_whose_order_or_batches_would_not_be_kept_are_refused() -> None:
    data = TensorDataset(*map(torch.from_numpy, digits()[0]))
    weighted = WeightedRandomSampler([1.0] * len(data), len(data))
    for loader, fact in [
        (DataLoader(data), "SequentialSampler"),
        (DataLoader(data, sampler=weighted), "WeightedRandomSampler"),
        (DataLoader(data, batch_size=None), "batches of its own"),
    ]:
        with pytest.raises(pl.InvalidSpec, match=fact):
            spec(train_data=loader)


def test_loaders_bring_their_dataset_batch_size_and_collate_to_any_model(client: pl.Client) -> None:
    train, val = (TensorDataset(*map(torch.from_numpy, part)) for part in digits())
    fields = {"loss": torch.nn.functional.cross_entropy, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    fields |= {"model": mlp(), "stop": pl.MaxEpochs(1)}
    loaders = DataLoader(train, 48, shuffle=True, drop_last=True), DataLoader(val, 10)
    given = pl.TrainSpec(train_data=loaders[0], val_data=loaders[1], **fields)
    assert (given.batch_size, given.drop_last, given.collate) == (48, True, None)
    assert (given.train_data, given.val_data) == (train, val)
    own, other = (lambda samples: torch.utils.data.default_collate(samples) for _ in range(2))
    loaders = DataLoader(train, 48, shuffle=True, collate_fn=own), DataLoader(val, 10, collate_fn=own)
    assert pl.TrainSpec(train_data=loaders[0], val_data=loaders[1], **fields).collate is own
    with pytest.raises(pl.InvalidSpec, match="collate_fn"):
        pl.TrainSpec(train_data=loaders[0], val_data=DataLoader(val, 10, collate_fn=other), **fields)


def test_a_metric_that_validation_step_does_not_log_is_named(client: pl.Client) -> None:
    job = client.train(Classifier(), Digits(), metrics=["val_f1"], stop=pl.MaxEpochs(1), microbatches=8)
    with pytest.raises(pl.InvalidSpec, match="logs no number 'val_f1'; it logs: val_loss, val_acc"):
        job.result(timeout=60)


# ---- Hugging Face ----


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", *map(str, range(17))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


class Written(torch.utils.data.Dataset[Any]):
    """Digits as sentences of their pixels' values, without the empty ones: of different lengths."""

    def __init__(self, part: tuple[np.ndarray, np.ndarray]) -> None:
        sentences = [" ".join(str(int(v * 16)) for v in row[::2]) for row in part[0]]
        self.tokens, self.labels = tokenizer()(sentences)["input_ids"], part[1].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return {"input_ids": self.tokens[index][index % 3 :], "labels": self.labels[index]}


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=19, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=10,
        max_position_embeddings=40,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def lora() -> Any:
    config = peft.LoraConfig(r=8, target_modules=["query", "value"], modules_to_save=["classifier"])
    return peft.get_peft_model(bert(), config)


def tuned(client: pl.Client, model: Any, workers: int) -> pl.Result:
    train, val = digits()
    job = client.train(
        model, Written((train[0][:600], train[1][:600])), val_data=Written((val[0][:100], val[1][:100])),
        collate=transformers.DataCollatorWithPadding(tokenizer()), metrics={"accuracy": accuracy},
        optimizer=partial(torch.optim.AdamW, lr=3e-3), batch_size=32, microbatches=8, stop=pl.MaxEpochs(2),
        resources=pl.Resources(workers=workers),
    )  # fmt: skip
    return job.result(timeout=120)


@pytest.mark.slow
def test_a_hugging_face_model_trains_with_its_collator_to_one_digest(client: pl.Client) -> None:
    one, two = (tuned(client, bert(), workers) for workers in (1, 2))
    assert one.digest == two.digest
    assert one.history == two.history
    assert one.history[-1]["val_loss"] < one.history[0]["val_loss"]
    assert {"val_accuracy"} < one.metrics.keys()
    assert isinstance(one.model, transformers.BertForSequenceClassification)


@pytest.mark.slow
def test_with_lora_only_the_adapters_change_and_the_digest_stays(client: pl.Client) -> None:
    model = lora()
    one, two = (tuned(client, model, workers) for workers in (1, 2))
    assert one.digest == two.digest
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before, after = model.state_dict(), one.state_dict
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    assert 0 < len(trained) < len(before) / 2


@pytest.mark.slow
def test_a_model_without_a_loss_is_refused_by_name(client: pl.Client) -> None:
    class Unlabelled(Written):
        def __getitem__(self, index: int) -> Any:
            return {"input_ids": self.tokens[index]}

    train, _ = digits()
    job = client.train(
        bert(), Unlabelled((train[0][:64], train[1][:64])), batch_size=32, stop=pl.MaxEpochs(1),
        optimizer=partial(torch.optim.AdamW, lr=1e-3), collate=transformers.DataCollatorWithPadding(tokenizer()),
    )  # fmt: skip
    with pytest.raises(pl.InvalidSpec, match="BertForSequenceClassification computed no loss"):
        job.result(timeout=60)
