"""A trained model in the user's hands."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.client.shards import LazyTensors
from paceline.errors import ModelUnknown
from paceline.plan import Plan


@dataclass(frozen=True)
class Result:
    """What a job delivered, checked against its digest.

    path: the model as safetensors; where it was sharded, a folder of such files with their index, as Hugging Face's
    libraries read it. history: one dict per evaluation, with `step`, `epoch`, `samples`, `loss` and the
    validation values. reproducible: whether another cluster of this hardware class would give the same digest;
    irreproducible_because says why not. ledger: per epoch, samples `expected`, `committed` and committed `twice`.
    """

    job_id: str
    path: Path
    digest: str
    step: int
    history: list[dict[str, float]] = field(repr=False)
    stop_reason: str
    reproducible: bool
    irreproducible_because: str | None
    hardware_class: str
    plan: Plan = field(repr=False)
    versions: dict[str, str | None] = field(repr=False)
    ledger: list[dict[str, int]] = field(repr=False)
    train_seconds: float
    _template: Any = field(default=None, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The values of the evaluation at the delivered model's step: with keep="best:…", the best one's."""
        return next(values for values in reversed(self.history) if values["step"] == self.step)

    @property
    def state_dict(self) -> Mapping[str, Any]:
        """Name -> tensor, on the CPU. A sharded model's tensors are read when they are asked for."""
        if self.path.is_dir():
            return LazyTensors(self.path)
        from safetensors.torch import load_file

        tensors: dict[str, Any] = load_file(self.path)
        return tensors

    def load_into(self, module: Any) -> Any:
        """Load the trained state into a module of the same shape, and return it."""
        module.load_state_dict(self.state_dict)
        return module

    @property
    def model(self) -> Any:
        """The trained module: a copy of the one submitted, or a new one from its builder.

        Raises ModelUnknown in a process that did not submit it.
        """
        if self._template is None:
            raise ModelUnknown(
                f"this process did not submit {self.job_id}, so it does not know the module.",
                "Use result.load_into(module), or result.state_dict.",
            )
        is_module = hasattr(self._template, "state_dict") and not isinstance(self._template, type)
        return self.load_into(copy.deepcopy(self._template) if is_module else self._template())
