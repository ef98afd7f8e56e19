"""The digest: of the tensors alone, not of the file that holds them; and broken files are told, not read."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from paceline.digest import file_sha256, model_digest
from paceline.errors import Corrupt


def tensors() -> dict[str, torch.Tensor]:
    return {
        "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.tensor(1.5, dtype=torch.bfloat16),
        "c.empty": torch.zeros(0, 4),
        "d.steps": torch.tensor([2**40], dtype=torch.int64),
    }


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def by_hand(state: dict[str, torch.Tensor]) -> str:
    """The digest's definition, from tensors rather than from a file."""
    dtypes = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(json.dumps([name, dtypes[tensor.dtype], list(tensor.shape)]).encode() + b"\n")
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def test_the_digest_is_what_its_definition_says(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    assert model_digest(tmp_path / "model.safetensors") == by_hand(tensors())


def test_the_order_of_saving_and_the_files_metadata_do_not_matter(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "one")
    save_file(dict(reversed(tensors().items())), tmp_path / "two", metadata={"by": "someone"})
    assert file_sha256(tmp_path / "one") != file_sha256(tmp_path / "two")
    assert model_digest(tmp_path / "one") == model_digest(tmp_path / "two")


def test_the_layout_of_the_file_does_not_matter(tmp_path: Path) -> None:
    """The same two tensors, one file holding them in the other order, behind a padded header."""
    entry = {"dtype": "U8", "shape": [2]}
    one = write(
        tmp_path / "one", {"a": {**entry, "data_offsets": [0, 2]}, "b": {**entry, "data_offsets": [2, 4]}}, b"aabb"
    )
    padded = (
        b"   " + json.dumps({"b": {**entry, "data_offsets": [0, 2]}, "a": {**entry, "data_offsets": [2, 4]}}).encode()
    )
    assert model_digest(write(tmp_path / "two", padded, b"bbaa")) == model_digest(one)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(a=torch.tensor(1.25, dtype=torch.bfloat16)),
        lambda t: t.update(renamed=t.pop("a")),
        lambda t: t.update({"b.weight": t["b.weight"].reshape(3, 2)}),
        lambda t: t.update({"d.steps": t["d.steps"].view(torch.float64)}),
        lambda t: t.pop("c.empty"),
    ],
    ids=["a value", "a name", "a shape", "a dtype", "a tensor less"],
)
def test_the_digest_tells_models_apart_by(change: object, tmp_path: Path) -> None:
    changed = tensors()
    change(changed)  # type: ignore[operator]
    save_file(tensors(), tmp_path / "one")
    save_file(changed, tmp_path / "two")
    assert model_digest(tmp_path / "one") != model_digest(tmp_path / "two")


WHOLE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 0),
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 20) + b"{}",
        struct.pack("<Q", 3) + b"{a}",
        struct.pack("<Q", 2) + b"\xff\xfe",
    ],
)
def test_what_is_no_safetensors_file_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        model_digest(tmp_path / "model")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "header",
    [
        [1, 2],
        None,
        7,
        {"a": 1},
        {"a": {"shape": [2], "data_offsets": [0, 2]}},
        {"a": {"dtype": "U8", "shape": [2]}},
        {"a": {**WHOLE, "data_offsets": [0]}},
        {"a": {**WHOLE, "data_offsets": ["x", "y"]}},
        {"a": {**WHOLE, "data_offsets": [2, 0]}},
        {"a": {**WHOLE, "data_offsets": [-9, 2]}},
        {"a": {**WHOLE, "data_offsets": [0, 3]}},
        {"a": {**WHOLE, "data_offsets": [0, 1.5]}},
    ],
)
def test_a_header_that_names_impossible_tensors_is_corrupt(header: object, tmp_path: Path) -> None:
    with pytest.raises(Corrupt):
        model_digest(write(tmp_path / "model", header, b"ab"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), bits=st.integers(1, 255), cut=st.integers(0, 40))
def test_a_damaged_file_is_corrupt_or_has_another_digest(tmp_path: Path, at: int, bits: int, cut: int) -> None:
    """Unless the damage lies where no tensor is: in the header's padding or its order of words."""
    path = tmp_path / "model"
    save_file(tensors(), path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= bits
    path.write_bytes(content[: len(content) - cut])
    try:
        digest = model_digest(path)
    except Corrupt:
        return
    assert digest.startswith("sha256:")
    in_data = at % len(content) >= len(content) - 34  # 24 + 2 + 8 bytes of tensors end the file
    assert not (in_data or cut) or digest != by_hand(tensors())


def test_a_file_is_named_by_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
