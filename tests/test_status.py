"""How a daemon is, as a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskqueue.status import Status, judge, status_file


@pytest.mark.parametrize(
    ("missing", "pending", "late", "was_ready", "stopping", "state"),
    [
        ((), False, False, False, False, "running"),
        ((), True, False, False, False, "starting"),
        (("a broker",), False, False, False, False, "starting"),
        (("a broker",), True, True, False, False, "degraded"),
        ((), True, True, False, False, "running"),  # slow to load, and nothing is wrong
        (("a broker",), False, False, True, False, "degraded"),
        ((), True, False, True, False, "running"),
        (("a broker",), True, True, True, True, "stopping"),
    ],
)
def test_the_state_follows_from_what_is_missing_and_how_long(
    missing: tuple[str, ...], pending: bool, late: bool, was_ready: bool, stopping: bool, state: str
) -> None:
    assert judge(missing, pending=pending, late=late, was_ready=was_ready, stopping=stopping) == state


def test_a_status_is_one_line_and_comes_back_as_it_was() -> None:
    status = Status(pid=1, state="degraded", status="fünf", reloads=2, problems=("a", "b"), version="1")

    assert status.to_json().count("\n") == 1
    assert Status.from_json(status.to_json()) == status


def test_one_of_a_newer_version_can_be_read_and_anything_else_is_refused() -> None:
    assert Status.from_json('{"pid": 1, "state": "running", "status": "", "more": 1}').pid == 1
    for text in ("", "[]", "{}", '{"pid": 1}', "nonsense"):
        with pytest.raises(ValueError, match=r".*"):
            Status.from_json(text)


def test_it_lies_beside_the_pid_file() -> None:
    assert status_file(Path("/run/x/dispatcher.pid")) == Path("/run/x/dispatcher.status")
