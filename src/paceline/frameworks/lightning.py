"""A LightningModule as it is: its steps, its optimizer, and its schedule as a function of the step.

Hooks are not called, and there is no Trainer: `current_epoch` and `global_step` stay 0, `batch_idx` is 0.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.errors import InvalidSpec

CALLED = {"on_save_checkpoint", "on_load_checkpoint", "on_fit_end", "on_train_end"}  # of no effect on training
REPLACED = (
    "backward", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step", "configure_gradient_clipping",
    "configure_model", "transfer_batch_to_device",
)  # fmt: skip


def adapted(fields: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidSpec for what a Trainer would do and nobody does here."""
    module = fields["model"]
    _check(module)
    given = dict(fields)
    if not isinstance(given.get("metrics", {}), Mapping):
        given["metrics"] = {name.removeprefix("val_"): Logged(name) for name in given["metrics"]}
    configured = _configured(module)
    ours: dict[str, Any] = {"training_step": LightningStep(), "optimizer": LightningOptimizer(module)}
    if given.get("loss") is not None:
        raise InvalidSpec("loss= was given with a LightningModule.", "Its training_step computes the loss.")
    by_user = given.get("lr_schedule")
    if configured.scheduler is not None and (by_user is None or isinstance(by_user, LightningSchedule)):
        given["lr_schedule"] = _schedule(module, configured, given)
    return {**ours, **{name: value for name, value in given.items() if value is not None}}


def _check(module: Any) -> None:
    if not module.automatic_optimization:
        raise InvalidSpec(
            f"{type(module).__name__} optimizes by itself (automatic_optimization=False).",
            "Let training_step return the loss.",
        )
    overridden = [name for name in _hooks(module) if _is_users(module, name)]
    if overridden:
        raise InvalidSpec(
            f"{type(module).__name__} has hooks that nobody would call here: {', '.join(overridden)}.",
            "Move what they do into training_step, augment=, clip_grad_norm= or the model itself.",
        )


def _hooks(module: Any) -> list[str]:
    named = (name for name in dir(type(module)) if name.startswith("on_") and callable(getattr(type(module), name)))
    return [*(name for name in named if name not in CALLED), *REPLACED]


def _is_users(module: Any, name: str) -> bool:
    owner = next((kind for kind in type(module).__mro__ if name in vars(kind)), None)
    return owner is not None and owner.__module__.split(".")[0] not in ("lightning", "pytorch_lightning", "torch")


@dataclass(frozen=True)
class Configured:
    """What configure_optimizers returned. interval: "epoch" or "step", of which every `frequency`-th counts."""

    optimizer: Any
    scheduler: Any = None
    interval: str = "epoch"
    frequency: int = 1


def _configured(module: Any) -> Configured:
    """Raises InvalidSpec where it is more than one optimizer with one schedule of learning rates."""
    try:
        found = module.configure_optimizers()
    except RuntimeError as error:
        if "Trainer" not in str(error):
            raise
        raise InvalidSpec(
            f"configure_optimizers needs a Trainer ({error}).", "Give the number of steps to the module instead."
        ) from error
    optimizers, schedulers = _parts(found)
    if len(optimizers) != 1 or len(schedulers) > 1:
        raise InvalidSpec(
            f"configure_optimizers returns {len(optimizers)} optimizers and {len(schedulers)} schedulers.",
            "Return one optimizer, and at most one scheduler.",
        )
    if not schedulers:
        return Configured(optimizers[0])
    given = schedulers[0] if isinstance(schedulers[0], Mapping) else {"scheduler": schedulers[0]}
    scheduler = given["scheduler"]
    if hasattr(scheduler, "patience") or getattr(scheduler, "cycle_momentum", False):
        raise InvalidSpec(
            f"a {type(scheduler).__name__} depends on more than the step, or changes more than the learning rate.",
            "Use another scheduler; OneCycleLR and CyclicLR do with cycle_momentum=False.",
        )
    return Configured(optimizers[0], scheduler, given.get("interval", "epoch"), given.get("frequency") or 1)


def _parts(found: Any) -> tuple[list[Any], list[Any]]:
    if isinstance(found, Mapping):
        scheduler = found.get("lr_scheduler")
        return [found["optimizer"]], [] if scheduler is None else [scheduler]
    if isinstance(found, list | tuple):
        if len(found) == 2 and isinstance(found[0], list | tuple):
            return list(found[0]), list(found[1])
        return list(found), []
    return ([] if found is None else [found]), []


class LightningOptimizer:
    """Makes the module's own optimizer. It travels with the module, so that both meet the same parameters."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, _named_parameters: Any) -> Any:
        return _configured(self._module).optimizer


def _schedule(module: Any, configured: Configured, fields: Mapping[str, Any]) -> LightningSchedule:
    data = fields["train_data"]
    if not hasattr(data, "__len__"):
        raise InvalidSpec("the length of the data is not known here, and the scheduler needs it.", "Give a dataset.")
    samples, batch = len(data), fields.get("batch_size", 32)
    if fields.get("drop_last"):
        samples -= samples % batch
    return LightningSchedule(module, configured.interval, configured.frequency, samples, batch)


class LightningSchedule:
    """The factor that the module's own scheduler would have reached: a function of the samples seen alone."""

    def __init__(self, module: Any, interval: str, frequency: int, samples_per_epoch: int, batch_size: int) -> None:
        self._module, self._interval, self._frequency = module, interval, frequency
        self._samples, self._batch = samples_per_epoch, batch_size
        self._shadow: Configured | None = None  # its optimizer never steps; its scheduler goes through all rates
        self._rates: list[list[float]] = []

    def __call__(self, samples_seen: int, _total_samples: int) -> float:
        epoch, rest = divmod(samples_seen, self._samples)
        step = epoch * -(-self._samples // self._batch) + rest // self._batch
        return self._factor((step if self._interval == "step" else epoch) // self._frequency)

    def _factor(self, index: int) -> float:
        if self._shadow is None:
            self._shadow = _configured(self._module)
            self._rates.append(self._now())
        while len(self._rates) <= index:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer did not step
                self._shadow.scheduler.step()
            self._rates.append(self._now())
        factors = {now / first for now, first in zip(self._rates[index], self._rates[0], strict=True) if first}
        if len(factors) != 1:
            raise InvalidSpec(
                "the scheduler changes the parameter groups' learning rates by different factors, or from 0.",
                "Give lr_schedule= instead.",
            )
        return factors.pop()

    def _now(self) -> list[float]:
        assert self._shadow is not None
        return [float(group["lr"]) for group in self._shadow.optimizer.param_groups]


class LightningStep:
    """training_step's loss. An evaluation is validation_step's, where the module has one: what it logs as `val_loss`,
    or else what it returns; metrics get all that it logs."""

    def __call__(self, model: Any, batch: Any) -> Any:
        with logged(model):
            return _loss(_call(model.training_step, batch), "training_step")

    def evaluate(self, model: Any, batch: Any) -> tuple[Any, Any, Any]:
        own = _is_users(model, "validation_step")
        step = model.validation_step if own else model.training_step
        with logged(model) as values:
            returned = _call(step, batch)
        loss = values["val_loss"] if "val_loss" in values else _loss(returned, step.__name__)
        return values, None, loss


def _call(step: Callable[..., Any], batch: Any) -> Any:
    takes_index = "batch_idx" in inspect.signature(step).parameters
    return step(batch, 0) if takes_index else step(batch)


def _loss(returned: Any, step: str) -> Any:
    loss = returned["loss"] if isinstance(returned, Mapping) else returned
    if loss is None:
        raise InvalidSpec(f"{step} returned no loss.", "Return it, or {'loss': …}; validation_step may log val_loss.")
    return loss


@contextlib.contextmanager
def logged(module: Any) -> Iterator[dict[str, Any]]:
    """What the module logs meanwhile."""
    values: dict[str, Any] = {}
    module.log = lambda name, value, *_, **__: values.update({name: value})
    module.log_dict = lambda found, *_, **__: values.update(found)
    try:
        yield values
    finally:
        del module.log, module.log_dict


@dataclass(frozen=True)
class Logged:
    """A metric that validation_step logs under this name: a number, the mean over the batch."""

    name: str

    def __call__(self, outputs: Mapping[str, Any], _targets: Any) -> Any:
        value = outputs.get(self.name)
        if value is None or hasattr(value, "compute"):
            raise InvalidSpec(
                f"validation_step logs no number {self.name!r}; it logs: {', '.join(outputs) or 'nothing'}.",
                "Log the mean over the batch; a torchmetrics object goes into metrics= by itself.",
            )
        return value
