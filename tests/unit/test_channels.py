"""The agents' channel: what a node's connection is worth once the same agent has dialled again."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from paceline.master.app import create_app, open_master
from paceline.master.cluster import WorkerLink
from paceline.master.routes import channels
from paceline.messages.from_agent import AgentHello, Load
from paceline.plan import Placement
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
    monkeypatch.setattr(channels, "AGENT_SILENT_BOUND_S", 2.0)
    master = open_master(tmp_path)
    master.store.add_token("secret", "node", now=0.0)
    with TestClient(create_app(master)) as http, http.websocket_connect(URL, headers=HEADERS) as silent:
        assert greet(silent, "boot/1") == "n0"
        wait_until(lambda: not master.cluster.nodes())


@pytest.mark.parametrize("token", [None, "unknown", "of-the-admin", "of-ann", "of-a-worker"])
def test_no_one_but_a_node_joins_as_one(tmp_path: Path, token: str | None) -> None:
    master = open_master(tmp_path)
    for known, role in (("of-the-admin", "admin"), ("of-ann", "client")):
        master.store.add_token(known, role, now=0.0, user=known)
    master.cluster.workers["job", 1, 0] = WorkerLink(place(0), threads=1, memory=1, secret="of-a-worker")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with TestClient(create_app(master)) as http:
        with pytest.raises(WebSocketDisconnect) as refused, http.websocket_connect(URL, headers=headers):
            pass
        assert refused.value.code == channels.FORBIDDEN
        assert master.cluster.nodes() == []
        master.cluster.workers.clear()


@pytest.mark.parametrize(
    ("token", "rank"),
    [(None, 0), ("unknown", 0), ("of-a-node", 0), ("of-rank-1", 0), ("of-rank-0", 1), ("of-rank-0", 2)],
)
def test_a_workers_channel_opens_to_its_own_secret_alone(tmp_path: Path, token: str | None, rank: int) -> None:
    master = open_master(tmp_path)
    master.store.add_token("of-a-node", "node", now=0.0)
    for other in (0, 1):
        master.cluster.workers["job", 1, other] = WorkerLink(
            place(other), threads=1, memory=1, secret=f"of-rank-{other}"
        )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    where = f"/api/v1/channels/worker?job_id=job&attempt=1&rank={rank}"
    with TestClient(create_app(master)) as http:
        with pytest.raises(WebSocketDisconnect) as refused, http.websocket_connect(where, headers=headers):
            pass
        assert refused.value.code == channels.FORBIDDEN
        with http.websocket_connect(where.replace(f"rank={rank}", "rank=0"), headers=bearer("of-rank-0")):
            wait_until(lambda: master.cluster.workers["job", 1, 0].send is not None)
        master.cluster.workers.clear()


def place(rank: int) -> Placement:
    return Placement(rank=rank, node_id="n", node_name="n", device="cpu", share=(rank, rank + 1))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
