"""A sharded model on its way to the client: gathered tensor by tensor, in safetensors files and their index.

The layout is Hugging Face's. Names go in their order through the files, so that the digest is that of the same model
in one file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paceline.digest import digest_line
from paceline.errors import NonFinite
from paceline.messages.from_worker import ModelFile, Saved
from paceline.training.mode import Around
from paceline.training.sharded.group import ShardGroup

FILE_BYTES = 512 * 2**20
INDEX = "model.safetensors.index.json"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def cut_files(sizes: Sequence[tuple[str, int]], most: int = FILE_BYTES) -> dict[str, list[str]]:
    """File name -> names of its tensors, in order; sizes: (name, bytes). A file is over `most` only with one tensor."""
    files: list[list[str]] = []
    room = 0
    for name, nbytes in sizes:
        if not files or nbytes > room:
            files.append([])
            room = most
        files[-1].append(name)
        room -= nbytes
    return {f"model-{at:05}-of-{len(files):05}.safetensors": names for at, names in enumerate(files, start=1)}


def upload_model(tensors: dict[str, torch.Tensor], step: int, group: ShardGroup, around: Around) -> Saved:
    """All members lend their shards; the first writes, uploads and removes one file at a time. Raises NonFinite."""
    names = sorted(tensors)
    files = cut_files([(name, tensors[name].numel() * tensors[name].element_size()) for name in names])
    if group.place != 0:
        for name in names:
            group.whole(tensors[name])
        return Saved(step=step)
    digest = hashlib.sha256()
    uploaded = []
    for file_name, held in files.items():
        path = around.scratch / file_name
        _write_file(path, {name: tensors[name] for name in held}, step, group, digest)
        nbytes = path.stat().st_size
        uploaded.append(ModelFile(name=file_name, blob=around.deliver(path), nbytes=nbytes))
        path.unlink()
        around.monitor.cells += 1
    index = around.scratch / INDEX
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: file_name for file_name, held in files.items() for name in held}
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    return Saved(
        step=step,
        blob=around.deliver(index),
        nbytes=sum(file.nbytes for file in uploaded),
        digest=f"sha256:{digest.hexdigest()}",
        files=tuple(uploaded),
    )


def _write_file(
    path: Path, tensors: dict[str, torch.Tensor], step: int, group: ShardGroup, digest: hashlib._Hash
) -> None:
    """Stream the tensors into one safetensors file, and their bytes into the digest."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            whole = group.whole(tensor).detach().cpu().contiguous()
            if whole.is_floating_point() and not whole.isfinite().all():
                raise NonFinite(
                    f"the model after step {step} is not finite: {name!r} holds NaN or infinity.",
                    "Lower the learning rate or set clip_grad_norm=1.0.",
                )
            data: Any = whole.view(-1).view(torch.uint8).numpy()
            digest.update(digest_line(name, DTYPES[tensor.dtype], tensor.shape))
            digest.update(data)
            file.write(data)
