"""The relay that tests put into connections: it changes when bytes arrive, never which."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator

import pytest

from paceline.testing.relay import Relay

QUIET_S = 0.3


def _echo(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed: the test is over
            return
        threading.Thread(target=_echo_one, args=(connection,), daemon=True).start()


def _echo_one(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def connect(relay: Relay) -> socket.socket:
    return socket.create_connection((relay.host, relay.port), timeout=20)


def receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length and (more := connection.recv(65536)):
        received += more
    return received


@pytest.mark.parametrize(("delay_s", "mbit"), [(0.0, None), (0.02, None), (0.0, 80.0)])
def test_all_bytes_arrive_in_order_and_then_the_end(echo: tuple[str, int], delay_s: float, mbit: float | None) -> None:
    sent = secrets.token_bytes(500_000)
    with Relay(echo, delay_s=delay_s, mbit=mbit) as relay, connect(relay) as connection:
        writing = threading.Thread(target=lambda: (connection.sendall(sent), connection.shutdown(socket.SHUT_WR)))
        writing.start()
        assert receive(connection, len(sent) + 1) == sent
        writing.join()


def test_a_black_hole_says_nothing_and_loses_nothing(echo: tuple[str, int]) -> None:
    with Relay(echo) as relay, connect(relay) as connection:
        connection.sendall(b"before")
        assert receive(connection, 6) == b"before"
        relay.black_hole()
        connection.sendall(b"while")
        connection.settimeout(QUIET_S)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        relay.restore()
        connection.settimeout(20)
        assert receive(connection, 5) == b"while"


def test_a_black_hole_hides_that_the_other_side_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Relay(listener.getsockname()) as relay, connect(relay) as connection:
            other, _ = listener.accept()
            relay.black_hole()
            connection.sendall(b"x")  # is handled after the black hole was made
            other.close()
            connection.settimeout(QUIET_S)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            relay.restore()
            connection.settimeout(20)
            assert receive(connection, 1) == b""


def test_a_target_that_refuses_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()
    with Relay(nobody) as relay, connect(relay) as connection:
        assert receive(connection, 1) == b""
