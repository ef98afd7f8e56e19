"""What the models of a framework compute for a batch."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class FrameworkStep(Protocol):
    """A training_step that evaluates in a way of its own."""

    def __call__(self, model: Any, batch: Any) -> Any:
        """The mean loss, in training."""

    def evaluate(self, model: Any, batch: Any) -> tuple[Any, Any, Any]:
        """(outputs, targets) for metrics, and the mean loss."""
