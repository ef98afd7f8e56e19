"""Trust in a master's own certificate."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import paceline as pl
from paceline.engine.agent import Agent
from paceline.engine.protocol import AgentArgs
from paceline.testing.certificate import Certificate, make_certificate
from paceline.tls import trusting
from paceline.training.channel import Channel, WorkerEnv


def test_a_given_certificate_is_trusted_alone_and_httpx_takes_it_without_a_warning(tmp_path: Path) -> None:
    made = make_certificate("127.0.0.1", tmp_path)
    context = trusting(str(made.cert))
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "paceline-testing"),),)]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        httpx.Client(verify=context).close()


def test_a_master_whose_certificate_is_not_trusted_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    made = make_certificate("127.0.0.1", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(pl.MasterUnreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            pl.Client(f"https://127.0.0.1:{server.server_port}", "any")
    assert "--ca" in caught.value.remedy


@contextlib.contextmanager
def served(made: Certificate) -> Iterator[str]:
    """The address of a TLS server with this certificate; what dials it may break off."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_agents_and_workers_send_no_secret_to_a_master_whose_certificate_is_another(tmp_path: Path) -> None:
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    theirs, ours = (make_certificate("127.0.0.1", tmp_path / name) for name in ("theirs", "ours"))
    fields = dict.fromkeys(("cache", "scratch", "job", "copies", "log"), "")
    with served(theirs) as url:
        env = WorkerEnv(
            master_url=url, job_id="job", attempt=1, rank=0, secret="s", threads=1, device="cpu", address="127.0.0.1",
            shared=[], ca=str(ours.cert), **fields,
        )  # fmt: skip
        with pytest.raises(ssl.SSLCertVerificationError):
            Channel(env, lambda order: None)
        agent = Agent(AgentArgs(master_url=url, token="of-a-node", folder=tmp_path, ca=ours.cert))
        try:
            with pytest.raises(ssl.SSLCertVerificationError):
                asyncio.run(agent._serve_once())
        finally:
            agent._copies.close()


UNHEARD = """
from paceline.training import channel
channel.OPEN_WITHIN_S, channel.CLOSED_WITHIN_S = 0.3, 0.5
env = channel.WorkerEnv(
    master_url="{url}", job_id="job", attempt=1, rank=0, secret="s", threads=1, device="cpu", address="127.0.0.1",
    cache="", shared=[], scratch="", job="", copies="", log="", ca="{ca}",
)
channel.Channel(env, lambda order: None)
"""


def test_a_worker_that_a_master_never_answers_ends_and_says_so(tmp_path: Path) -> None:
    """Its connection's own thread waits inside TLS, where no bound of the connection's reaches it."""
    made = make_certificate("127.0.0.1", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        program = UNHEARD.format(url=url, ca=made.cert)
        worker = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
        accepted, _ = listening.accept()
        with context.wrap_socket(accepted, server_side=True):  # and so sends the tickets that it reads on behind
            _, said = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert said.endswith(f"no answer from the master at {url} within 0 s\n")
