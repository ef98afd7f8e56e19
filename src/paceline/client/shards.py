"""A model in several safetensors files, in Hugging Face's layout: fetched file by file, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paceline.digest import file_sha256
from paceline.errors import ProtocolError
from paceline.transfer import BlobStore

INDEX = "model.safetensors.index.json"


def fetch_files(blobs: BlobStore, folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Fetch the model's files and their index into the folder; those that are there whole stay as they are.

    Raises ProtocolError for a file that would not lie in the folder: a worker chose its name.
    """
    paths = []
    for file in found["files"]:
        if Path(file["name"]).name != file["name"]:
            raise ProtocolError(f"the model has a file {file['name']!r}, which is no plain file name.")
        path = folder / file["name"]
        if not path.exists() or file_sha256(path) != file["blob"]:
            blobs.download(file["blob"], path)
        paths.append(path)
    blobs.download(found["blob"], folder / INDEX)
    return paths


class LazyTensors(Mapping[str, Any]):
    """Name -> tensor, on the CPU; each is read from its file when it is asked for, and not kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file_of: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]

    def __getitem__(self, name: str) -> Any:
        from safetensors import safe_open

        with safe_open(self._folder / self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
