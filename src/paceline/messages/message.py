"""What all messages of the master, the agents and the workers are: length-bounded JSON, parsed once, never pickles.

Beside the base, what both sides speak of.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_MESSAGE_BYTES = 16 * 2**20


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class CheckpointRef(Message):
    """A published checkpoint: the state after `step` committed steps.

    blob: one safetensors file with JSON metadata; in sharded training the manifest, which names the `files`.
    """

    step: int
    blob: str
    nbytes: int
    files: tuple[str, ...] = ()

    @property
    def blobs(self) -> tuple[str, ...]:
        return (self.blob, *self.files)
