"""A worker's program: the user's objects, built on their device, and the calls that training makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from paceline.errors import InvalidSpec
from paceline.frameworks.step import FrameworkStep
from paceline.grid import derive_seed
from paceline.training.seeds import seed_everything


@dataclass
class Program:
    """model: on `device`, in fresh aligned memory. parameters: those that train, in the model's order."""

    model: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    base_lrs: list[Any]
    device: torch.device
    precision: str
    loss: Callable[..., Any] | None
    training_step: Callable[..., Any] | None
    lr_schedule: Callable[[int, int], float] | None
    metrics: Mapping[str, Any]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def cell_loss(self, batch: Any) -> torch.Tensor:
        """The scalar mean loss of one batch. Raises InvalidSpec where it is no scalar."""
        with self.autocast():
            if self.training_step is not None:
                loss = self.training_step(self.model, batch)
            else:
                outputs, targets = self.forward(batch)
                loss = self.loss(outputs, targets)  # type: ignore[misc]
        return _scalar(loss, "training_step" if self.training_step else "loss")

    def evaluated(self, batch: Any) -> tuple[Any, Any, Any]:
        """(outputs, targets) for the metrics, where there are any, and the mean loss of one batch."""
        with self.autocast():
            if isinstance(self.training_step, FrameworkStep):
                return self.training_step.evaluate(self.model, batch)
            if self.training_step is None:
                outputs, targets = self.forward(batch)
                return outputs, targets, self.loss(outputs, targets)  # type: ignore[misc]
            outputs, targets = self.forward(batch) if self.metrics else (None, None)
            return outputs, targets, self.cell_loss(batch)

    def forward(self, batch: Any) -> tuple[Any, Any]:
        """(outputs, targets) of a batch whose last part is the targets."""
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise InvalidSpec(
                f"a batch is a {type(batch).__name__}, not (inputs, targets).",
                "Yield (inputs, targets) samples, or give training_step= instead of loss=.",
            )
        return self.model(*batch[:-1]), batch[-1]

    def set_lr(self, samples_seen: int, total_samples: int | None) -> None:
        """Scale the optimizer's own learning rates by the schedule's factor."""
        if self.lr_schedule is None:
            return
        factor = float(self.lr_schedule(samples_seen, total_samples or 0))
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor


def _scalar(loss: Any, field: str) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise InvalidSpec(f"{field} returned a {type(loss).__name__}, not a tensor.", "Return a scalar tensor.")
    if loss.numel() != 1:
        raise InvalidSpec(
            f"{field} returned a tensor of shape {tuple(loss.shape)}, not a scalar.",
            "Return the mean over the batch, e.g. reduction='mean' or loss.mean().",
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise InvalidSpec(
            f"{field} returned a tensor without a gradient: it does not depend on the model's parameters.",
            "Compute it from the model's outputs, without detach(), .data or torch.no_grad().",
        )
    return loss.reshape(())


def build(fields: dict[str, Any], seed: int, device: torch.device, precision: str) -> Program:
    """Build model and optimizer from the unpickled fields. Raises InvalidSpec, or whatever the user's code raises."""
    model = build_model(fields["model"], seed).to(device)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # out of the mapped file, into aligned memory of our own
    return assemble(model, fields, device, precision)


def build_model(given: Any, seed: int) -> torch.nn.Module:
    """The module itself, or what its builder builds under the seed. Raises InvalidSpec where that is no module."""
    seed_everything(derive_seed(seed, "model"))
    model = given if isinstance(given, torch.nn.Module) else given()
    if not isinstance(model, torch.nn.Module):
        raise InvalidSpec(f"model= built a {type(model).__name__}.", "Build and return a torch.nn.Module.")
    return model


def assemble(model: torch.nn.Module, fields: dict[str, Any], device: torch.device, precision: str) -> Program:
    """The program around a model that is where it will train. Raises InvalidSpec, as `build`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise InvalidSpec("the model has no parameters that require gradients.", "Give a model that can be trained.")
    optimizer = fields["optimizer"](named)
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidSpec(
            f"optimizer= made a {type(optimizer).__name__}.",
            "Return one first-order torch optimizer, e.g. partial(torch.optim.AdamW, lr=1e-3).",
        )
    return Program(
        model=model,
        parameters=[p for _, p in named],
        optimizer=optimizer,
        base_lrs=[group["lr"] for group in optimizer.param_groups],
        device=device,
        precision=precision,
        loss=fields["loss"],
        training_step=fields["training_step"],
        lr_schedule=fields["lr_schedule"],
        metrics=fields["metrics"],
    )
