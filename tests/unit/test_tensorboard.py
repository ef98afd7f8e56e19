"""TensorBoard's event files: scalars as its own writers wrote them, read as the files grow."""

from __future__ import annotations

import base64
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from paceline.training.tensorboard import EventFiles, scalars

# by SummaryWriter of torch 2.13 and tensorboard 2.21: add_scalar("loss", 0.5, 1), add_scalar("acc/val", 0.25, 2,
# new_style=True), add_text("note", "hello", 3), add_histogram("h", [1.0, 2.0], 3), add_scalar("loss", 0.125, 300)
WRITTEN = base64.b64decode(
    "SAAAAAAAAAD+kkidCYrq9XK0wdpBGg1icmFpbi5FdmVudDoyUi4KLHRlbnNvcmJvYXJkLnN1bW1hcnkud3JpdGVyLmV2ZW50X2ZpbGVfd3JpdG"
    "Vy74XwqxoAAAAAAAAAEpvYLQnm8/VytMHaQRABKg0KCwoEbG9zcxUAAAA/eOE7YS8AAAAAAAAAbV0dUAmN9PVytMHaQRACKiIKIAoHYWNjL3Zh"
    "bEIICAEqBAAAgD5KCwoJCgdzY2FsYXJz/sauKT0AAAAAAAAAYEnx7Akl9fVytMHaQRADKjAKLgoRbm90ZS90ZXh0X3N1bW1hcnlCDwgHEgQSAg"
    "gBQgVoZWxsb0oICgYKBHRleHQgkNVC6AAAAAAAAAD9xMK/CZAE9nK0wdpBEAMq2gEK1wEKAWgq0QEJAAAAAAAA8D8RAAAAAAAAAEAZAAAAAAAA"
    "AEAhAAAAAAAACEApAAAAAAAAFEAyUAiZaRkVWu0/KxT6zb4k8D9jScYVBcLxP7pQjTGfiPM/Mz/oHK989T+FRcyfwKL3P3lM+uLT//k/U4dGE2"
    "mZ/D/clM0ujXX/P+AR8Qx0TQFAOlAAAAAAAAAAAAAAAAAAAPA/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAADwP1Bdzn4bAAAAAAAAABoNnhMJIAX2crTB2kEQrAIqDQoLCgRsb3NzFQAAAD5ynIB0"
)


def test_the_newest_scalar_of_each_tag_is_read_and_what_is_no_scalar_is_left_out(tmp_path: Path) -> None:
    files = EventFiles((tmp_path, tmp_path / "not_there"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "events.out.tfevents.1").write_bytes(WRITTEN)
    assert files.read() == (300, {"loss": 0.125, "acc/val": 0.25})
    assert files.read() == (None, {})


@given(st.lists(st.integers(0, len(WRITTEN)), max_size=6))
def test_a_file_that_grows_in_pieces_is_read_once_whole(cuts: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files, path = EventFiles((Path(folder),)), Path(folder) / "events.out.tfevents.2"
        steps, seen = [], {}
        for at in [*sorted(cuts), len(WRITTEN)]:
            path.write_bytes(WRITTEN[:at])
            step, values = files.read()
            steps += [step] if step is not None else []
            seen.update(values)
        assert seen == {"loss": 0.125, "acc/val": 0.25}
        assert steps == sorted(steps)
        assert steps[-1] == 300


def test_what_an_earlier_attempt_wrote_is_not_told_again(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(WRITTEN)
    assert EventFiles((tmp_path,)).read() == (None, {})


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_something_or_nothing_and_never_raise(data: bytes) -> None:
    step, found = scalars(data)
    assert isinstance(step, int)
    assert all(isinstance(value, float) for value in found.values())
