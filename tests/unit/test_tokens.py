"""Users and their tokens: made and revoked by the admin, kept as hashes; a job belongs to whose token submitted it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from paceline.master.app import create_app, open_master
from paceline.master.context import Master
from paceline.versions import here

from builders import submission


@pytest.fixture
def master(tmp_path: Path) -> Master:
    made = open_master(tmp_path)
    made.store.add_token("of-the-admin", "admin", now=1.0)
    made.store.add_token("of-a-node", "node", now=1.0)
    return made


@pytest.fixture
def http(master: Master) -> Iterator[TestClient]:
    with TestClient(create_app(master), base_url="http://master/api/v1") as http:
        yield http


def by(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ADMIN = by("of-the-admin")


def made_for(http: TestClient, user: str) -> str:
    answer = http.post(f"/tokens/{user}", headers=ADMIN)
    assert answer.status_code == 201
    assert answer.json()["user"] == user
    return str(answer.json()["token"])


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_made_token_is_a_clients_until_it_is_revoked_and_is_kept_as_a_hash_only(
    http: TestClient, tmp_path: Path
) -> None:
    ann, again, bob = made_for(http, "ann"), made_for(http, "ann"), made_for(http, "bob")
    assert len({ann, again, bob}) == 3
    assert [http.get("/jobs", headers=by(token)).status_code for token in (ann, again, bob)] == [200] * 3
    listed = http.get("/tokens", headers=ADMIN).json()
    assert sorted((row["user"], row["role"]) for row in listed) == [
        ("admin", "admin"), ("admin", "node"), ("ann", "client"), ("ann", "client"), ("bob", "client")
    ]  # fmt: skip
    assert not any(token in http.get("/tokens", headers=ADMIN).text for token in (ann, again, bob))
    assert http.post("/tokens/ann/revoke", headers=ADMIN).json() == {"revoked": 2}
    assert code(http.get("/jobs", headers=by(ann))) == (401, "unauthorized")
    assert code(http.get("/jobs", headers=by(again))) == (401, "unauthorized")
    assert http.get("/jobs", headers=by(bob)).status_code == 200
    assert code(http.post("/tokens/ann/revoke", headers=ADMIN)) == (404, "not_found")
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("paceline.db*"))
    assert not any(token.encode() in kept for token in (ann, again, bob))


def test_only_the_admin_deals_with_tokens_and_the_admins_own_are_no_users(http: TestClient) -> None:
    ann = made_for(http, "ann")
    for headers in (by(ann), by("of-a-node")):
        for method, path in (("GET", "/tokens"), ("POST", "/tokens/bob"), ("POST", "/tokens/ann/revoke")):
            assert code(http.request(method, path, headers=headers)) == (403, "forbidden")
    assert code(http.post("/tokens/bob", headers=by("unknown"))) == (401, "unauthorized")
    assert code(http.post("/tokens/admin", headers=ADMIN)) == (409, "conflict")
    assert code(http.post("/tokens/admin/revoke", headers=ADMIN)) == (409, "conflict")
    assert code(http.post("/tokens/*", headers=ADMIN)) == (422, "invalid_spec")
    assert http.get("/jobs", headers=ADMIN).status_code == 200  # the admin is a client, too
    assert code(http.get("/jobs", headers=by("of-a-node"))) == (403, "forbidden")


def test_a_job_is_its_submitters_and_is_told_that_it_waits_and_why(http: TestClient, master: Master) -> None:
    master.cluster.join(_hello(), [].append)  # one node of one core
    sent = submission("one").model_copy(update={"versions": here()})
    for blob in (b for package in sent.packages for b in package.blobs):
        (master.blobs.folder / blob).write_bytes(b"")
    ann, bob = made_for(http, "ann"), made_for(http, "bob")
    first = http.post("/jobs", headers=by(ann), json=sent.model_dump(mode="json")).json()
    assert (first["user"], first["state"], first["queue_place"]) == ("ann", "STARTING", None)
    second = sent.model_copy(update={"request_id": "two"}).model_dump(mode="json")
    told = http.post("/jobs", headers=by(bob), json=second).json()
    assert (told["user"], told["state"], told["queue_place"]) == ("bob", "QUEUED", 1)
    assert told["expected_start_s"] > 0  # as the first is predicted to end
    assert "0 of 1 cores free" in told["queue_reason"]
    assert [job["user"] for job in http.get("/jobs", headers=ADMIN).json()] == ["bob", "ann"]


def _hello() -> Any:
    from paceline.messages import AgentHello

    from builders import GIB

    return AgentHello(
        name="n0", is_master=False, address="127.0.0.1", hardware_class="cpu:AVX2", cores=1, memory=8 * GIB,
        versions=here(),
    )  # fmt: skip
