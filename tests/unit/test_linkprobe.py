"""Probes of a link: what they make of a burst, whom they answer, and that they end."""

from __future__ import annotations

import asyncio
import socket

import pytest

from paceline.engine import linkprobe
from paceline.engine.linkprobe import BURST_BYTES, BURST_S, Listener, probe, rate

HERE = "127.0.0.1"


def test_the_first_bytes_which_a_token_bucket_lets_pass_are_not_in_the_rate() -> None:
    bucket = [(0.0, 1000), (0.001, 50_000)]
    steady = [(0.01 * tick, 50_000 + 1000 * tick) for tick in range(1, 31)]
    assert rate([*bucket, *steady]) == pytest.approx(100_000)


def test_a_burst_that_ends_with_its_lead_is_told_by_an_upper_bound() -> None:
    assert rate([(5.0, 3000)]) == pytest.approx(3000 / BURST_S)


def test_a_fast_burst_is_measured_by_its_bytes_long_before_its_time_is_over() -> None:
    steps = BURST_BYTES // 65536
    arrivals = [(number * 65536 / 1e9, number * 65536) for number in range(1, steps + 1)]
    assert rate(arrivals) == pytest.approx(1e9)


def test_a_probe_over_the_loopback_finds_a_fast_and_near_node_and_both_ends_are_done() -> None:
    async def meet() -> linkprobe.Found:
        with Listener(HERE, "secret") as listener:
            serving = asyncio.create_task(listener.serve())
            found = await probe(HERE, listener.port, "secret")
            await asyncio.wait_for(serving, 5)
            return found

    found = asyncio.run(meet())
    assert found.bytes_per_s > 1e7
    assert 0 < found.latency_s < 0.1


def test_who_does_not_know_the_secret_gets_no_answer_and_does_not_keep_the_other_from_his() -> None:
    async def meet() -> linkprobe.Found:
        with Listener(HERE, "secret") as listener:
            serving = asyncio.create_task(listener.serve())
            with pytest.raises(ConnectionError):
                await probe(HERE, listener.port, "guess")
            found = await probe(HERE, listener.port, "secret")
            await asyncio.wait_for(serving, 5)
            return found

    assert asyncio.run(meet()).bytes_per_s > 0


def test_where_nobody_listens_the_reason_is_told() -> None:
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"{HERE}:{port}: .*refused"):
        asyncio.run(probe(HERE, port, "secret"))


def test_a_peer_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkprobe, "PROBE_WITHIN_S", 0.2)
    with socket.create_server((HERE, 0)) as silent:
        with pytest.raises(TimeoutError, match=r"pings and bursts took longer than"):
            asyncio.run(probe(HERE, silent.getsockname()[1], "secret"))


def test_a_listener_that_nobody_calls_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkprobe, "LISTEN_S", 0.1)

    async def wait() -> None:
        with Listener(HERE, "secret") as listener:
            await asyncio.wait_for(listener.serve(), 5)

    asyncio.run(wait())


def test_a_burst_ends_after_8_mib_however_much_the_other_end_would_take() -> None:
    async def take() -> int:
        with Listener(HERE, "secret") as listener:
            serving = asyncio.create_task(listener.serve())
            reader, writer = await asyncio.open_connection(HERE, listener.port)
            writer.write(b"secret take\n")
            got = len(await reader.readexactly(8 * 2**20))
            with pytest.raises(TimeoutError):  # it waits for the other end's word now
                await asyncio.wait_for(reader.read(1), 0.2)
            serving.cancel()
            writer.close()
            return got

    assert asyncio.run(take()) == BURST_BYTES


def test_a_burst_that_only_trickles_is_ended_by_who_takes_it() -> None:
    assert BURST_S == 0.3

    async def trickle() -> float:
        with Listener(HERE, "secret") as listener:
            serving = asyncio.create_task(listener.serve())
            reader, writer = await asyncio.open_connection(HERE, listener.port)
            writer.write(b"secret give\n")
            told = asyncio.create_task(reader.readline())
            async with asyncio.timeout(30):
                while not told.done():
                    writer.write(bytes(1000))
                    await asyncio.sleep(0.005)
            serving.cancel()
            writer.close()
            return float(told.result())

    assert 0 < asyncio.run(trickle()) < 1e6
