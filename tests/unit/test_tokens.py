"""Users and their tokens: made and revoked by the admin, kept as hashes; a job is for whose token submitted it alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from paceline.master.__main__ import tokens
from paceline.master.app import create_app, open_master
from paceline.master.cluster import WorkerLink
from paceline.master.committed import Training
from paceline.master.context import Master
from paceline.master.job import Job
from paceline.master.states import Failed
from paceline.plan import Placement
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


@pytest.fixture
def anns(master: Master, http: TestClient) -> str:
    """A job of ann's that has failed."""
    sent = submission(values=("accuracy",))
    master.store.add_job("job-1", sent, now=1.0, user="ann")
    error = {"code": "user_code", "fact": "the model raised.", "remedy": "", "details": {"traceback": "line 3"}}
    evaluated = Training(step=4, history=({"step": 4, "val_loss": 0.5},))
    master.store.save(Job(id="job-1", submission=sent, state=Failed(error), training=evaluated), None, [], now=2.0)
    return "job-1"


def routes_of_a_job(http: TestClient) -> list[tuple[str, str]]:
    """(method, path) of all that the application serves of one job, by its own table."""
    table: dict[str, dict[str, Any]] = http.get("http://master/openapi.json").json()["paths"]
    prefix = "/api/v1"
    of_one = [path for path in table if path.startswith(f"{prefix}/jobs/{{")]
    return [(method.upper(), path.removeprefix(prefix)) for path in of_one for method in table[path]]


def test_whatever_is_one_jobs_is_for_its_owner_and_the_admin_alone(http: TestClient, anns: str) -> None:
    ann, again, bob = by(made_for(http, "ann")), by(made_for(http, "ann")), by(made_for(http, "bob"))
    routes = routes_of_a_job(http)
    assert {("POST", "/jobs/{job_id}/cancel"), ("GET", "/jobs/{job_id}/output")} <= set(routes)
    for method, path in routes:

        def asked(headers: dict[str, str], job_id: str = anns, method: str = method, path: str = path) -> Any:
            return http.request(
                method, path.format(job_id=job_id), headers=headers,
                params={"workers": 1, "digest": "sha256:1", "follow": False},
            )  # fmt: skip

        refused = asked(bob)
        assert code(refused) == (403, "forbidden"), path
        assert refused.json()["details"] == {"owner": "ann"}
        assert "ann" in refused.json()["remedy"]
        assert code(asked(by("of-a-node"))) == (403, "forbidden"), path
        assert code(asked(by("unknown"))) == (401, "unauthorized"), path
        assert code(asked(bob, "job-2")) == (404, "not_found"), path
        assert {asked(headers).status_code for headers in (ann, again, ADMIN)} <= {200, 409}, path


def test_the_list_shows_every_user_all_jobs_and_what_is_in_them_to_their_owner(http: TestClient, anns: str) -> None:
    def listed(headers: dict[str, str]) -> dict[str, Any]:
        [job] = http.get("/jobs", headers=headers).json()
        return dict(job)

    own = listed(by(made_for(http, "ann")))
    assert own == listed(ADMIN)
    assert (own["history"], own["error"]["code"]) == ([{"step": 4, "val_loss": 0.5}], "user_code")
    assert own["values"] == ["loss", "val_loss", "accuracy"]
    blank = {"history": [], "error": None, "values": []}
    assert listed(by(made_for(http, "bob"))) == {**own, **blank}
    assert (own["id"], own["user"], own["state"], own["step"]) == (anns, "ann", "FAILED", 4)


def test_the_request_id_of_another_user_is_refused(http: TestClient, master: Master) -> None:
    sent = submission("one").model_copy(update={"versions": here()})
    for blob in (b for package in sent.packages for b in package.blobs):
        (master.blobs.folder / blob).write_bytes(b"")
    master.store.add_job("job-1", sent, now=1.0, user="ann")
    body = sent.model_dump(mode="json")
    assert http.post("/jobs", headers=by(made_for(http, "ann")), json=body).json()["id"] == "job-1"
    for headers in (by(made_for(http, "bob")), ADMIN):
        answer = http.post("/jobs", headers=headers, json=body)
        assert code(answer) == (409, "conflict")
        assert "job-1, a job of ann" in answer.json()["fact"]


def test_nothing_but_the_documentation_answers_without_a_token(http: TestClient) -> None:
    table: dict[str, dict[str, Any]] = http.get("http://master/openapi.json").json()["paths"]
    routes = [(method, path) for path in table for method in table[path]]
    assert len(routes) > 20
    for method, path in routes:
        places = {"job_id": "job-1", "name": "a" * 64, "node_id": "n0", "user": "ann"}
        answer = http.request(method, f"http://master{path.format_map(places)}")
        assert code(answer) == (401, "unauthorized"), (method, path)


def test_only_the_admin_takes_a_node_from_everybody(http: TestClient, master: Master) -> None:
    master.cluster.join(_hello(), [].append)
    assert code(http.post("/nodes/n0/drain", headers=by(made_for(http, "ann")))) == (403, "forbidden")
    assert http.post("/nodes/n0/drain", headers=ADMIN).status_code == 204


def _hello() -> Any:
    from paceline.messages.from_agent import AgentHello

    from builders import GIB

    return AgentHello(
        name="n0", is_master=False, address="127.0.0.1", hardware_class="cpu:AVX2", cores=1, memory=8 * GIB,
        versions=here(),
    )  # fmt: skip


def test_a_token_that_is_no_ascii_text_opens_nothing_beside_living_workers(http: TestClient, master: Master) -> None:
    place = Placement(rank=0, node_id="n", node_name="n", device="cpu", share=(0, 1))
    master.cluster.workers["job", 1, 0] = WorkerLink(place, threads=1, memory=1)
    answer = http.get("/jobs", headers={"Authorization": b"Bearer of-\xe4nn"})
    assert code(answer) == (401, "unauthorized")
    del master.cluster.workers["job", 1, 0]


def test_a_folders_own_tokens_are_its_owners_to_read_and_stay_the_same(tmp_path: Path) -> None:
    made = tokens(tmp_path)
    assert tokens(tmp_path) == made
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("tokens.json", 0o600)]
