"""The agents' channel: what a node's connection is worth once the same agent has dialled again."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession

from paceline.master.app import create_app, open_master
from paceline.master.routes import channels
from paceline.messages.from_agent import AgentHello, Load
from paceline.versions import here

from builders import GIB
from helpers import wait_until

URL, HEADERS = "/api/v1/channels/agent", {"Authorization": "Bearer secret"}


def greet(channel: WebSocketTestSession, identity: str) -> str:
    """Say hello; return the node's id."""
    hello = AgentHello(
        name="n0", identity=identity, is_master=False, address="127.0.0.1", hardware_class="cpu:AVX2", cores=4,
        memory=8 * GIB, versions=here(),
    )  # fmt: skip
    channel.send_text(hello.model_dump_json())
    return str(channel.receive_json()["node_id"])


def test_a_former_link_ends_without_taking_the_node_that_has_come_back_with_it(tmp_path: Path) -> None:
    master = open_master(tmp_path)
    master.store.add_token("secret", "node", now=0.0)
    with TestClient(create_app(master)) as http:
        with http.websocket_connect(URL, headers=HEADERS) as new:
            with http.websocket_connect(URL, headers=HEADERS) as old:
                assert greet(old, "boot/1") == "n0"
                assert greet(new, "boot/1") == "n0"
                old.send_text(Load(available_memory=1, busy_cores=0.0, worker_cores=0.0).model_dump_json())
            new.send_text(Load(available_memory=GIB, busy_cores=0.0, worker_cores=0.0).model_dump_json())
            with http.websocket_connect(URL, headers=HEADERS) as other:
                assert greet(other, "boot/2") == "n0~2"
                assert [node.id for node in master.cluster.nodes()] == ["n0", "n0~2"]


def test_a_node_whose_agent_says_nothing_is_given_up_within_15_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channels.AGENT_SILENT_BOUND_S == 15.0
    monkeypatch.setattr(channels, "AGENT_SILENT_BOUND_S", 0.2)
    master = open_master(tmp_path)
    master.store.add_token("secret", "node", now=0.0)
    with TestClient(create_app(master)) as http, http.websocket_connect(URL, headers=HEADERS) as silent:
        assert greet(silent, "boot/1") == "n0"
        assert [node.id for node in master.cluster.nodes()] == ["n0"]
        wait_until(lambda: not master.cluster.nodes())
