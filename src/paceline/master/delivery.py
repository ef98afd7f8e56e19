"""What a job that has succeeded gives to its client."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from paceline.messages.from_worker import ModelFile, Returned


class Delivery(BaseModel):
    """The trained model, as the client will get it: one blob, or `files` with the blob as their index."""

    model_config = ConfigDict(frozen=True)

    blob: str
    files: tuple[ModelFile, ...] = ()
    nbytes: int
    digest: str
    step: int
    stop_reason: str
    reproducible: bool
    irreproducible_because: str | None = None
    hardware_class: str


class KeptFolder(BaseModel):
    """An output folder, as a tar file."""

    model_config = ConfigDict(frozen=True)

    blob: str
    nbytes: int


class Output(BaseModel):
    """What a script left, as the client will get it. blob, nbytes: of rank 0's output folder; "" for none.

    folders: of each rank; those of one node are the same. returned: by each rank, where it was a function.
    """

    model_config = ConfigDict(frozen=True)

    blob: str
    nbytes: int
    folder: str
    folders: tuple[KeptFolder | None, ...] = ()
    returned: tuple[Returned | None, ...]
    stop_reason: str
