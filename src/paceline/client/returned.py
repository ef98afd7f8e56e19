"""What a function returned on a rank, read without unpickling anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_returned(form: str, path: Path) -> Any:
    """The JSON value, the tensor, or the dict of tensors that a file holds. form: "json", "tensor" or "tensors"."""
    if form == "json":
        return json.loads(path.read_text())
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tensors["value"] if form == "tensor" else dict(tensors)
