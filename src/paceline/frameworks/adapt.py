"""Models and data of other frameworks as fields of a spec. They are known by their classes' names: none is imported."""

from __future__ import annotations

from typing import Any

from paceline.errors import InvalidSpec
from paceline.frameworks import huggingface, lightning

SHUFFLING = ("RandomSampler", "DistributedSampler")


def adapted(fields: dict[str, Any]) -> dict[str, Any]:
    """The spec's fields with what its framework says filled in; what the user gave stays. Raises InvalidSpec.

    A LightningModule brings training_step, optimizer and lr_schedule, a LightningDataModule or a DataLoader the
    datasets, batch_size, collate and drop_last; a PreTrainedModel, of `peft` too, its loss.
    """
    model, data = fields.get("model"), fields.get("train_data")
    if is_a(data, "LightningDataModule"):
        fields = _from_data_module(fields, data)
    fields = _from_loaders(fields)
    if is_a(model, "LightningModule"):
        return lightning.adapted(fields)
    if is_a(model, "PreTrainedModel") or is_a(model, "PeftModel"):
        return huggingface.adapted(fields)
    return fields


def is_a(value: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(value).__mro__)


def _from_data_module(fields: dict[str, Any], data: Any) -> dict[str, Any]:
    """Prepared and set up here, as a Trainer's fit does it."""
    data.prepare_data()
    data.setup("fit")
    loaders = {"train_data": data.train_dataloader()}
    if _overrides(data, "val_dataloader") and fields.get("val_data") is None:
        loaders["val_data"] = data.val_dataloader()
    for field, loader in loaders.items():
        if not is_a(loader, "DataLoader"):
            raise InvalidSpec(
                f"{type(data).__name__} gives a {type(loader).__name__} as {field}.", "Return one DataLoader."
            )
    return {**fields, **loaders}


def _overrides(value: Any, name: str) -> bool:
    """Whether a class of the user's own defines the method, rather than the framework's base."""
    owner = next(kind for kind in type(value).__mro__ if name in vars(kind))
    return owner.__module__.split(".")[0] not in ("lightning", "pytorch_lightning")


def _from_loaders(fields: dict[str, Any]) -> dict[str, Any]:
    loaders: dict[str, Any] = {
        name: fields.get(name) for name in ("train_data", "val_data") if is_a(fields.get(name), "DataLoader")
    }
    for field, loader in loaders.items():
        if loader.batch_size is None:
            raise InvalidSpec(f"{field}'s DataLoader makes batches of its own.", "Give it batch_size=.")
    train, val = loaders.get("train_data"), loaders.get("val_data")
    found: dict[str, Any] = {}
    if train is not None:
        _check_shuffles(train)
        found = {"batch_size": train.batch_size, "drop_last": train.drop_last, "collate": _collate(train)}
    if val is not None and "collate" not in fields and _collate(val) != found.get("collate"):
        raise InvalidSpec("the DataLoaders have different collate_fn.", "Give both the same.")
    return {**found, **fields, **{name: loader.dataset for name, loader in loaders.items()}}


def _check_shuffles(loader: Any) -> None:
    sampler = type(loader.sampler).__name__
    if sampler not in SHUFFLING and not is_a(loader.dataset, "IterableDataset"):  # which is refused as a stream
        raise InvalidSpec(
            f"the training DataLoader takes its samples by {sampler}; here every epoch has an order of its own.",
            "Set shuffle=True; weights go into the loss.",
        )


def _collate(loader: Any) -> Any:
    """None for torch's own."""
    collate = loader.collate_fn
    return None if getattr(collate, "__name__", "") == "default_collate" else collate
