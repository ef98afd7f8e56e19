"""What comes over a bad line: bytes that are not those of their name, and an event stream that breaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import paceline as pl
from paceline.client import events
from paceline.transfer import BlobStore, sha256

CONTENT = b"what was asked for"


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://master", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("sent", [b"something else all", CONTENT[:5], b""])
def test_bytes_that_are_not_those_of_their_name_are_refused_and_leave_nothing(tmp_path: Path, sent: bytes) -> None:
    store = BlobStore(answering(lambda _: httpx.Response(200, content=sent)))
    with pytest.raises(pl.Corrupt):
        store.download(sha256(CONTENT), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


class Breaks(httpx.SyncByteStream):
    """Some events, and then no more of the line."""

    def __init__(self, *numbers: int, last: bool = False) -> None:
        self._numbers, self._last = numbers, last

    def __iter__(self) -> Iterator[bytes]:
        for seq in self._numbers:
            data = {"state": "SUCCEEDED" if self._last else "RUNNING", "seq": seq}
            yield f"id: {seq}\nevent: state\ndata: {json.dumps(data)}\n\n".encode()
        if not self._last:
            raise httpx.ReadError("the line broke")


def test_a_broken_event_stream_goes_on_after_the_last_event_and_tells_each_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "RETRY_AFTER_S", 0.0)
    asked: list[str] = []
    answers = [Breaks(1, 2), Breaks(), Breaks(3), Breaks(4, last=True)]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        return httpx.Response(200, stream=answers[len(asked) - 1])

    found = [event.data["seq"] for event in events.follow(answering(answer), "job")]
    assert found == [1, 2, 3, 4]
    assert asked == ["0", "2", "2", "3"]


def test_a_master_that_stays_away_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_AFTER_S", 0.0)
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(pl.MasterUnreachable):
        list(events.follow(answering(answer), "job"))
    assert asked == events.RETRIES + 1
