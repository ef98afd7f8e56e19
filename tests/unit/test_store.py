"""The store on SQLite: what is written is one transaction, is there again after a restart, and in its order."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

import paceline as pl
from paceline.master import store as store_module
from paceline.master.commands import Commit, Learn, Record, RollBack
from paceline.master.committed import Checkpoint, Training
from paceline.master.delivery import Delivery
from paceline.master.job import Job
from paceline.master.models import Base
from paceline.master.states import Cancelled, Failed, Succeeded, Waiting
from paceline.master.store import Store
from paceline.messages.message import CheckpointRef

from builders import plan_of, profile_of, submission

DELIVERY = Delivery(
    blob="e" * 64, nbytes=10, digest="sha256:1", step=10, stop_reason="MaxSteps(10)", reproducible=True,
    hardware_class="cpu:AVX2",
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "paceline.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{file}")
    yield opened
    opened.close()


@pytest.fixture
def job(store: Store) -> Job:
    store.add_job("job-1", submission(), now=1.0)
    return Job(id="job-1", submission=submission())


def reopened(file: Path) -> Store:
    return Store(f"sqlite:///{file}")


def test_a_submission_is_there_again_after_a_restart(store: Store, file: Path) -> None:
    sent = submission(name="mine", priority=3, stop=pl.MaxEpochs(2) | pl.MaxTime("1h"))
    row, new = store.add_job("job-1", sent, now=5.0)
    assert new
    store.close()
    found = reopened(file).job("job-1")
    assert found.submission == row.submission == sent.model_dump(mode="json")
    assert (found.state, found.attempt, found.name, found.priority, found.created_at) == ("QUEUED", 0, "mine", 3, 5.0)


def test_a_request_id_twice_is_one_job(store: Store) -> None:
    store.add_job("job-1", submission("same"), now=1.0)
    row, new = store.add_job("job-2", submission("same"), now=2.0)
    assert (row.id, new) == ("job-1", False)
    assert [row.id for row in store.jobs()] == ["job-1"]
    assert [event.data["state"] for event in store.events("job-1", after=0)] == ["QUEUED"]
    assert store.events("job-2", after=0) == []


def test_one_request_id_from_many_threads_at_once_is_one_job(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: store.add_job(f"job-{n}", submission("same"), now=1.0), range(8)))
    assert len({row.id for row, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1
    assert len(store.jobs()) == 1


def test_a_job_id_twice_is_an_error_and_changes_nothing(store: Store) -> None:
    store.add_job("job-1", submission("one"), now=1.0)
    with pytest.raises(Exception, match="UNIQUE constraint"):
        store.add_job("job-1", submission("two"), now=2.0)
    assert [row.request_id for row in store.jobs()] == ["one"]


def test_events_are_numbered_in_the_order_in_which_they_happened(store: Store, job: Job) -> None:
    store.add_job("job-2", submission("other"), now=1.0)
    first = store.save(job, None, [Record("planned", {"attempt": 1}), Record("state", {"state": "STARTING"})], now=2.0)
    store.save(replace(job, id="job-2"), None, [Record("state", {"state": "STARTING"})], now=3.0)
    store.save(job, None, [Record("progress", {"step": 4})], now=4.0)
    events = store.events("job-1", after=0)
    assert [event.kind for event in events] == ["state", "planned", "state", "progress"]
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert [event.seq for event in first] == [event.seq for event in events[1:3]]
    assert [event.kind for event in store.events("job-1", after=first[-1].seq)] == ["progress"]
    assert events[-1].data == {"step": 4}


def test_a_roll_back_undoes_the_commits_from_its_step_on_and_of_its_job_alone(store: Store, job: Job) -> None:
    store.add_job("job-2", submission("other"), now=1.0)
    rounds = [Commit(1, 0, 4, 40), Commit(1, 4, 8, 40), Commit(1, 8, 9, 10)]
    store.save(job, None, rounds, now=2.0)
    store.save(replace(job, id="job-2"), None, rounds, now=2.0)
    store.save(job, None, [RollBack(4)], now=3.0)
    store.save(job, None, [Commit(2, 4, 9, 50)], now=4.0)
    assert [(c.attempt, c.from_step, c.to_step, c.samples) for c in store.commits("job-1")] == [
        (1, 0, 4, 40),
        (2, 4, 9, 50),
    ]
    assert [(c.from_step, c.to_step) for c in store.commits("job-2")] == [(0, 4), (4, 8), (8, 9)]


def test_undone_commits_stay_on_record(store: Store, job: Job, file: Path) -> None:
    store.save(job, None, [Commit(1, 0, 4, 40)], now=2.0)
    store.save(job, None, [RollBack(0)], now=3.0)
    assert store.commits("job-1") == []
    assert sqlite3.connect(file).execute("SELECT from_step, to_step, undone FROM commits").fetchall() == [(0, 4, 1)]


def test_a_commit_and_a_roll_back_in_one_save_keep_their_order(store: Store, job: Job) -> None:
    store.save(job, None, [Commit(1, 0, 4, 40), RollBack(0), Commit(2, 0, 2, 20)], now=2.0)
    assert [(c.attempt, c.to_step) for c in store.commits("job-1")] == [(2, 2)]


def test_what_a_restarted_master_needs_survives_with_its_nans(store: Store, job: Job, file: Path) -> None:
    training = Training(step=8, history=({"step": 4.0, "val_loss": math.nan},), best=-math.inf, best_step=4)
    checkpoint = Checkpoint(ref=CheckpointRef(step=8, blob="f" * 64, nbytes=3), training=training)
    waiting = replace(
        job,
        state=Waiting("a node is gone"),
        attempt=2,
        elapsed_s=7.5,
        training=training,
        checkpoints=(checkpoint,),
        wish=3,
        hardware_class="cpu:AVX2",
    )
    store.save(waiting, plan_of([(0, 8)]), [Record("state", {"state": "WAITING"})], now=9.0)
    store.close()
    (row,) = reopened(file).unfinished()
    assert (row.state, row.attempt, row.elapsed_s, row.ended_at, row.wish) == ("WAITING", 2, 7.5, None, 3)
    assert row.hardware_class == "cpu:AVX2"
    assert row.checkpoints is not None
    (again,) = map(Checkpoint.model_validate, row.checkpoints)
    assert (again.ref, again.training.best, again.training.best_step) == (checkpoint.ref, -math.inf, 4)
    assert math.isnan(again.training.history[0]["val_loss"])
    assert row.plan == plan_of([(0, 8)]).model_dump(mode="json")


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (Succeeded(DELIVERY), "SUCCEEDED"),
        (Failed({"code": "user_code", "fact": "f"}), "FAILED"),
        (Cancelled(), "CANCELLED"),
    ],
)
def test_a_job_that_has_ended_is_unfinished_no_more(store: Store, job: Job, state: object, name: str) -> None:
    assert [row.id for row in store.unfinished()] == ["job-1"]
    store.save(replace(job, state=state), None, [], now=11.0)  # type: ignore[arg-type]
    row = store.job("job-1")
    assert store.unfinished() == []
    assert (row.state, row.ended_at) == (name, 11.0)
    assert row.delivery == (DELIVERY.model_dump(mode="json") if name == "SUCCEEDED" else None)
    assert row.error == ({"code": "user_code", "fact": "f"} if name == "FAILED" else None)


def test_a_later_save_keeps_the_plan_of_an_earlier_one(store: Store, job: Job) -> None:
    store.save(job, plan_of([(0, 8)]), [], now=2.0)
    store.save(job, None, [], now=3.0)
    assert store.job("job-1").plan == plan_of([(0, 8)]).model_dump(mode="json")


def test_jobs_are_listed_newest_first_and_unfinished_ones_oldest_first(store: Store) -> None:
    for n in (2, 1, 3):
        store.add_job(f"job-{n}", submission(f"r{n}"), now=float(n))
    assert [row.id for row in store.jobs()] == ["job-3", "job-2", "job-1"]
    assert [row.id for row in store.unfinished()] == ["job-1", "job-2", "job-3"]


def test_the_first_acknowledgement_of_a_delivery_counts(store: Store, job: Job) -> None:
    store.save(replace(job, state=Succeeded(DELIVERY)), None, [], now=10.0)
    store.mark_delivered("job-1", 20.0)
    store.mark_delivered("job-1", 30.0)
    assert store.job("job-1").delivered_at == 20.0


def test_a_forgotten_model_leaves_everything_but_the_blob(store: Store, job: Job) -> None:
    store.save(replace(job, state=Succeeded(DELIVERY)), None, [], now=10.0)
    store.forget_model("job-1")
    row = store.job("job-1")
    assert row.delivery == {**DELIVERY.model_dump(mode="json"), "blob": ""}
    assert row.checkpoints == []


def test_an_unknown_job_is_not_found(store: Store) -> None:
    with pytest.raises(pl.NotFound, match="'job-9'") as caught:
        store.job("job-9")
    assert caught.value.remedy


def test_tokens_are_known_by_their_hash_and_never_stored(store: Store, file: Path) -> None:
    store.add_token("secret-of-the-client", "client", now=1.0)
    found = store.token("secret-of-the-client")
    assert found is not None
    assert (found.role, found.user) == ("client", "admin")
    assert store.token("secret-of-the-clienT") is None
    assert store.token(hashlib.sha256(b"secret-of-the-client").hexdigest()) is None
    store.close()
    assert b"secret-of-the-client" not in b"".join(path.read_bytes() for path in file.parent.iterdir())


def test_a_token_added_again_has_its_new_role_and_user(store: Store) -> None:
    store.add_token("token", "node", now=1.0)
    store.add_token("token", "client", now=2.0, user="ann")
    assert [(row.role, row.user, row.created_at) for row in store.tokens()] == [("client", "ann", 2.0)]


def test_the_masters_new_tokens_take_the_place_of_its_former_ones_and_of_no_users(store: Store) -> None:
    store.own_tokens("admin-1", "node-1", now=1.0)
    store.add_token("of-ann", "client", now=1.0, user="ann")
    store.own_tokens("admin-2", "node-2", now=2.0)
    assert [store.token(token) is None for token in ("admin-1", "node-1")] == [True, True]
    assert {(row.user, row.role) for row in store.tokens()} == {
        ("admin", "admin"),
        ("admin", "node"),
        ("ann", "client"),
    }


def test_all_tokens_of_one_user_are_revoked_and_of_no_other(store: Store) -> None:
    for token, user in (("a", "ann"), ("b", "ann"), ("c", "bob")):
        store.add_token(token, "client", now=1.0, user=user)
    assert store.revoke_tokens("ann") == 2
    assert [store.token(token) is not None for token in "abc"] == [False, False, True]
    assert store.revoke_tokens("ann") == 0


def test_migrations_make_the_very_tables_that_the_models_describe(store: Store, file: Path) -> None:
    with create_engine(f"sqlite:///{file}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert context.get_current_revision() == store_module.HEAD


@pytest.mark.parametrize("checkpoint_of_none", [None, "null"], ids=["sql null", "json null"])
def test_a_folder_of_an_earlier_version_is_brought_up_to_date_with_its_jobs(
    tmp_path: Path, checkpoint_of_none: str | None
) -> None:
    file = tmp_path / "old.db"
    database = sqlite3.connect(file)
    with create_engine(f"sqlite:///{file}").begin() as connection:
        store_module.migrate(connection, "0001")
    database.execute(
        "INSERT INTO jobs (id, request_id, priority, submission, state, attempt, elapsed_s, training, created_at, checkpoint, plan)"
        " VALUES ('job-1', 'r', 0, ?, 'RUNNING', 1, 2.0, '{}', 1.0, ?, ?), ('job-2', 's', 0, '{}', 'QUEUED', 0, 0, '{}', 2.0, ?, NULL)",
        [
            submission().model_dump_json(),
            '{"ref": {"step": 4}}',
            plan_of([(0, 8)]).model_dump_json(),
            checkpoint_of_none,
        ],
    )
    database.execute("INSERT INTO events (job_id, at, kind, data) VALUES ('job-1', 1.0, 'state', '{}')")
    database.commit()
    first, second = reopened(file).unfinished()
    assert (first.id, first.state, first.wish) == ("job-1", "RUNNING", None)
    assert (first.checkpoints, second.checkpoints) == ([{"ref": {"step": 4}}], [])
    assert (first.hardware_class, second.hardware_class) == ("cpu:AVX2", None)
    assert (first.user, second.user) == ("admin", "admin")
    assert len(reopened(file).events("job-1", after=0)) == 1


def test_opening_again_changes_no_tables_and_no_rows(store: Store, job: Job, file: Path) -> None:
    store.close()
    before = list(sqlite3.connect(file).iterdump())
    reopened(file).close()
    assert list(sqlite3.connect(file).iterdump()) == before


def test_a_save_that_fails_leaves_nothing_half_done(store: Store, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("between the statements")

    monkeypatch.setattr(store_module, "_write", refuse)
    with pytest.raises(RuntimeError):
        store.save(replace(job, state=Cancelled()), None, [Commit(1, 0, 1, 1), Record("state", {})], now=2.0)
    assert store.job("job-1").state == "QUEUED"
    assert len(store.events("job-1", after=0)) == 1
    assert store.commits("job-1") == []


def test_a_full_disk_is_told_as_such_and_the_store_works_on_when_there_is_room(
    store: Store, job: Job, file: Path
) -> None:
    """SQLite's own limit of pages gives the same error as a full disk."""

    def limit(pages: int) -> None:
        with store._engine.connect() as connection:  # the pool has this one connection
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    store._engine.dispose()
    limit(1)
    large = Record("note", {"text": "x" * 100_000})
    with pytest.raises(pl.DiskFull) as caught:
        store.save(job, None, [large], now=2.0)
    assert caught.value.remedy
    assert len(store.events("job-1", after=0)) == 1
    limit(10**6)
    store.save(job, None, [large], now=3.0)
    assert len(store.events("job-1", after=0)) == 2


def test_a_database_that_is_locked_is_told_as_such_and_written_once_it_is_not(
    store: Store, job: Job, file: Path
) -> None:
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with store._engine.connect() as connection:  # the pool has this one connection
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
        with pytest.raises(pl.PacelineError, match="database is locked"):
            store.save(job, None, [Record("note", {})], now=2.0)
    store.save(job, None, [Record("note", {})], now=3.0)
    assert [row.kind for row in store.events("job-1", after=0)] == ["state", "note"]


def test_jobs_that_ended_long_ago_are_left_out_where_they_are_not_wanted(store: Store, job: Job) -> None:
    store.save(replace(job, state=Cancelled()), None, [], now=50.0)
    assert [row.id for row in store.jobs(ended_after=49.0)] == ["job-1"]
    assert store.jobs(ended_after=50.0) == []


def test_what_was_learned_of_a_kind_is_there_again_after_a_restart_the_latest_for_each_class(
    store: Store, job: Job, file: Path
) -> None:
    first, other = profile_of(build_s=0.5), profile_of(hardware_class="cpu:OLD")
    store.save(job, None, [Learn("kind", first), Learn("kind", other), Learn("another", first)], now=2.0)
    store.save(job, None, [Learn("kind", profile_of(build_s=0.7))], now=3.0)
    store.close()
    found = {(kind, p.hardware_class): (p.build_s, p.at) for kind, p in reopened(file).profiles()}
    assert found == {
        ("kind", "cpu:AVX2"): (0.7, 3.0),
        ("kind", "cpu:OLD"): (0.1, 2.0),
        ("another", "cpu:AVX2"): (0.5, 2.0),
    }


def test_jobs_of_events_must_exist(store: Store) -> None:
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.save(Job(id="nobody", submission=submission()), None, [Record("state", {})], now=1.0)
