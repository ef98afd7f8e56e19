"""The error table: codes, statuses and exit codes that others rely on; and the way over the network."""

from __future__ import annotations

import json

import pytest

import paceline as pl
from paceline.errors import PacelineError, UserCodeError, all_errors, from_json

SHARED_EXIT_CODES = {2: {"invalid_spec", "not_yet_supported", "unpicklable"}, 3: {"unauthorized", "forbidden"}}


def subclasses(kind: type[PacelineError]) -> set[type[PacelineError]]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


def test_the_table_holds_the_whole_tree() -> None:
    assert set(all_errors()) == {kind for kind in subclasses(PacelineError) if kind.__module__ == "paceline.errors"}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in all_errors()]
    assert len(set(codes)) == len(codes)
    assert all(code.isidentifier() and code.islower() for code in codes)


def test_exit_codes_are_unique_but_for_invalid_input_and_tokens_that_do_not_do() -> None:
    by_exit_code: dict[int, set[str]] = {}
    for kind in all_errors():
        by_exit_code.setdefault(kind.exit_code, set()).add(kind.code)
    assert {code: kinds for code, kinds in by_exit_code.items() if len(kinds) > 1} == SHARED_EXIT_CODES
    assert all(0 < code < 64 for code in by_exit_code)  # 64 and up have other meanings to shells


def test_http_statuses_are_errors_and_only_the_unforeseen_are_500() -> None:
    assert {kind.code for kind in all_errors() if kind.http_status == 500} == {"internal", "job_failed"}
    assert all(400 <= kind.http_status < 600 for kind in all_errors())
    statuses = {"unauthorized": 401, "forbidden": 403, "not_found": 404, "expired": 410, "disk_full": 507}
    assert {kind.code: kind.http_status for kind in all_errors() if kind.code in statuses} == statuses


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_an_error_survives_the_network_with_all_it_says(kind: type[PacelineError]) -> None:
    sent = kind("3 of 4 are gone.", "Add one.", count=3, names=["a"])
    got = from_json(json.loads(json.dumps(sent.to_json())))
    assert type(got) is kind
    assert (got.fact, got.remedy, got.details) == (sent.fact, sent.remedy, {"count": 3, "names": ["a"]})
    assert str(got) == str(sent)


def test_a_code_from_the_future_is_still_an_error_with_its_fact() -> None:
    got = from_json({"code": "not_invented_yet", "fact": "something new."})
    assert type(got) is PacelineError
    assert (got.fact, got.remedy, got.details) == ("something new.", "", {})


@pytest.mark.parametrize("body", [{}, {"code": None, "details": None}, {"fact": 3}])
def test_a_body_that_is_hardly_an_error_is_one(body: dict[str, object]) -> None:
    assert isinstance(from_json(body), PacelineError)


def test_an_error_reads_as_what_happened_and_what_to_do() -> None:
    assert str(pl.NotFound("there is no job 'x'.", "`paceline jobs` lists them.")) == (
        "there is no job 'x'. `paceline jobs` lists them."
    )
    assert str(PacelineError("just a fact.")) == "just a fact."


def test_a_users_own_exception_is_shown_with_its_traceback() -> None:
    error = UserCodeError("your code raised KeyError: 'x'", "Its traceback follows.", traceback="Traceback:\n  line 3")
    assert error.traceback == "Traceback:\n  line 3"
    assert str(error).endswith("Its traceback follows.\n\nTraceback:\n  line 3")


def test_every_error_is_caught_as_a_paceline_error() -> None:
    assert all(issubclass(kind, pl.PacelineError) for kind in all_errors())
