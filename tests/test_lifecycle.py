"""The table of states and moves, and what draws it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskqueue.lifecycle import ENDED, MOVES, State, after, at_first, may
from taskqueue.outcome import Cancelled, Crashed, Dead, Done, Failed, Forward, Outcome, Release, Retry, Rules, TimedOut
from taskqueue.workitem import Workitem

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "lifecycle.md").read_text()
ITEM = Workitem(body=b"", type="t", id="1")


def test_every_state_has_its_moves() -> None:
    assert set(MOVES) == set(State)


def test_a_workitem_may_stay_where_it_is_and_go_only_where_the_table_says() -> None:
    assert may(State.WAITING, State.WAITING)
    assert may(State.WAITING, State.RUNNING)
    assert not may(State.SUCCEEDED, State.WAITING)
    assert not may(State.CANCELLED, State.RUNNING)


def test_only_what_became_a_dead_letter_leaves_an_ended_state() -> None:
    assert {state for state in ENDED if MOVES[state]} == {State.FAILED, State.DEAD, State.EXPIRED}


def test_the_document_has_the_same_table() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| ((?:`\w+`(?:, )?)+|none) \|$", DOCUMENT)

    assert {State(name): frozenset(map(State, re.findall(r"`(\w+)`", to))) for name, to in rows} == dict(MOVES)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Done(), State.SUCCEEDED),
        (Failed("x"), State.FAILED),
        (Retry(1.0), State.RETRYING),
        (Retry(0.0, counts="nothing"), State.WAITING),
        (TimedOut(1.0), State.DEAD),
        (Dead("rejected"), State.DEAD),
        (Dead("expired"), State.EXPIRED),
        (Cancelled("SIGTERM"), State.CANCELLED),
        (Release(), State.WAITING),
        (Forward(ITEM), State.WAITING),
        (Forward(Workitem(body=b"", due=20.0)), State.SCHEDULED),
        (Crashed("SIGKILL"), State.RETRYING),
    ],
)
def test_an_outcome_brings_a_running_workitem_to_a_state_that_the_table_allows(outcome: Outcome, state: State) -> None:
    assert after(ITEM, outcome, Rules(max_crashes=3), 10.0) == state
    assert may(State.RUNNING, state) or isinstance(outcome, Dead)  # what expired never ran


def test_one_crash_too_many_is_death() -> None:
    assert after(Workitem(body=b"", crashes=2), Crashed("SIGKILL"), Rules(max_crashes=3), 0.0) == State.DEAD


def test_what_is_sent_for_later_is_scheduled_until_then() -> None:
    later = Workitem(body=b"", due=10.0)

    assert [at_first(later, now) for now in (9.0, 10.0)] == [State.SCHEDULED, State.WAITING]
