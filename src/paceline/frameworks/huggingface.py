"""Hugging Face's models, and peft's around them: the model itself computes the loss."""

from __future__ import annotations

from typing import Any

from paceline.errors import InvalidSpec


def adapted(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("loss") is None and fields.get("training_step") is None:
        return {**fields, "training_step": HuggingFaceStep()}
    return fields


class HuggingFaceStep:
    """`model(**batch).loss`. Metrics get the logits and the batch's labels."""

    def __call__(self, model: Any, batch: Any) -> Any:
        return self._outputs(model, batch).loss

    def evaluate(self, model: Any, batch: Any) -> tuple[Any, Any, Any]:
        outputs = self._outputs(model, batch)
        return outputs.logits, batch["labels"], outputs.loss

    def _outputs(self, model: Any, batch: Any) -> Any:
        if not hasattr(batch, "keys"):
            raise InvalidSpec(
                f"a batch is a {type(batch).__name__}, and the model takes its inputs by their names.",
                "Give collate= a data collator, or yield dicts.",
            )
        outputs = model(**batch)
        if getattr(outputs, "loss", None) is None:
            raise InvalidSpec(
                f"{type(model).__name__} computed no loss from {', '.join(batch)}.",
                "Let the batch hold labels, and take a model with a head for the task.",
            )
        return outputs
