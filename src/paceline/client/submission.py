"""From a TrainSpec to what crosses the network."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from paceline.client.data import normalize
from paceline.client.fingerprint import fingerprint
from paceline.client.operations import flop_per_sample, unnoticed
from paceline.client.packaging import Package, pack
from paceline.client.preflight import check_model, warn_of_large_captures
from paceline.errors import InvalidSpec
from paceline.grid import default_microbatches
from paceline.script import ScriptSubmission
from paceline.spec import PROGRAM_FIELDS, Facts, Submission, TrainSpec
from paceline.units import choose_units, tree_of
from paceline.versions import here


@dataclass(frozen=True)
class Packed:
    """A submission and the blobs that it names."""

    submission: Submission | ScriptSubmission
    blobs: dict[str, Any]


def prepare(spec: TrainSpec, request_id: str | None = None) -> Packed:
    """Check and pack a spec. Raises InvalidSpec and Unpicklable before anything is sent."""
    check_model(spec.model)
    for field in PROGRAM_FIELDS[1:]:
        warn_of_large_captures(getattr(spec, field), field)
    train = normalize(spec.train_data, "train_data")
    val = None if spec.val_data is None else normalize(spec.val_data, "val_data")
    facts = _facts(spec, train, val)
    if facts.train_samples is not None and spec.batch_size > facts.train_samples:
        raise InvalidSpec(
            f"batch_size={spec.batch_size} is larger than the training data's {facts.train_samples} samples.",
            f"Set batch_size to at most {facts.train_samples}.",
        )
    chosen = default_microbatches(spec.batch_size, facts.flop_per_sample, facts.parameters)
    spec = spec.model_copy(update={"microbatches": spec.microbatches or chosen})
    packages: dict[str, Package] = {"program": pack(spec.program(), ""), "train_data": pack(train, "train_data")}
    if val is not None:
        packages["val_data"] = pack(val, "val_data")
    submission = Submission(
        request_id=request_id or uuid.uuid4().hex,
        versions=here(),
        options=spec.options(),
        facts=facts,
        **{field: package.ref for field, package in packages.items()},
    )
    return Packed(submission, {name: blob for package in packages.values() for name, blob in package.blobs.items()})


def _facts(spec: TrainSpec, train: Any, val: Any) -> Facts:
    """What is known without training; at most two samples have gone through a copy of the model."""
    model = spec.model if hasattr(spec.model, "parameters") and not isinstance(spec.model, type) else None
    if model is None and spec.sync in ("sharded", "auto"):  # which may turn to it, where the model fits on no node
        model = _without_memory(spec.model)
    parameters = None if model is None else [p for p in model.parameters() if p.requires_grad]
    return Facts(
        parameters=None if parameters is None else sum(p.numel() for p in parameters),
        parameter_bytes=None if parameters is None else sum(p.numel() * p.element_size() for p in parameters),
        unit_bytes=None if model is None else max(choose_units(tree_of(model)).values()),
        flop_per_sample=flop_per_sample(spec, train),
        chose_microbatches=spec.microbatches is None,
        fingerprint=fingerprint(spec, train),
        train_samples=_length(train),
        val_samples=_length(val),
        values=spec.values,
    )


def _without_memory(builder: Any) -> Any:
    """What the builder builds, on the meta device; None where it can't. Random numbers are put back."""
    try:
        import torch

        with unnoticed(), torch.device("meta"):
            model = builder()
    except Exception:  # noqa: BLE001 - whatever is wrong with the model is told by the worker, where it counts
        return None
    return model if isinstance(model, torch.nn.Module) else None


def _length(data: Any) -> int | None:
    return len(data) if hasattr(data, "__len__") and not isinstance(data, type) else None
