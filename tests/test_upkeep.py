"""What is kept and what is counted: the rules."""

from __future__ import annotations

import random

import pytest

from taskqueue.lifecycle import ENDED, State
from taskqueue.record import Attempt, Run
from taskqueue.statistics import Finish, Tally, percentile, tallied, times, together
from taskqueue.upkeep import HOUR, Keep, Keeping, Round, dispensable, longest

DAY = 24 * HOUR
NOW = 1000 * DAY


def test_an_hour_goes_when_all_of_it_is_older_than_is_kept() -> None:
    keeping = Keeping(default=Keep(DAY))
    hours = [(NOW - DAY - HOUR, "t", 5), (NOW - DAY, "t", 5), (NOW - HOUR, "t", 5)]

    assert dispensable(hours, keeping, NOW) == {(NOW - DAY - HOUR, "t")}


def test_an_hour_goes_when_there_are_enough_after_it() -> None:
    keeping = Keeping(default=Keep(DAY * 365, 10))
    hours = [(NOW - n * HOUR, "t", 5) for n in range(1, 5)]

    assert dispensable(hours, keeping, NOW) == {(NOW - 3 * HOUR, "t"), (NOW - 4 * HOUR, "t")}


def test_each_type_has_its_own_rule_and_is_counted_by_itself() -> None:
    keeping = Keeping(default=Keep(DAY), types={"long": Keep(10 * DAY), "few": Keep(10 * DAY, 1)})
    hours = [(NOW - n * DAY, type, 1) for n in (2, 3) for type in ("long", "few", "other")]

    assert dispensable(hours, keeping, NOW) == {(NOW - 3 * DAY, "few"), *((NOW - n * DAY, "other") for n in (2, 3))}


def test_several_groups_of_a_type_get_what_satisfies_all() -> None:
    assert longest([Keep(1.0, 5), Keep(2.0, 3)]) == Keep(2.0, 5)
    assert longest([Keep(1.0, 5), Keep(2.0, 0)]) == Keep(2.0, 0)


def test_a_round_is_idle_when_it_did_nothing() -> None:
    assert Round().idle
    assert not Round(hours=1).idle


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_percentiles_are_right_to_five_percent_and_after_hours_were_put_together(share: float) -> None:
    random.seed(5)
    waits = [random.lognormvariate(0, 3) for _ in range(4000)]
    finishes = [Finish(NOW + n, "t", State.SUCCEEDED, wait, None) for n, wait in enumerate(waits)]

    tallies = tallied(finishes)
    (all_of_them,) = together(tallies)

    exact = sorted(waits)[int(share * len(waits))]
    found = percentile(all_of_them.waited, share)
    assert len(tallies) == 2
    assert found is not None and 0.94 < found / exact < 1.06
    assert percentile(all_of_them.ran, share) is None


def test_together_adds_by_type_or_by_type_and_hour() -> None:
    finishes = [Finish(NOW + n * HOUR, type, State.DEAD) for n in range(3) for type in ("b", "a")]

    assert [(t.type, t.total) for t in together(tallied(finishes))] == [("a", 3), ("b", 3)]
    assert [(t.type, t.hour) for t in together(tallied(finishes), hourly=True)] == [
        (type, NOW + n * HOUR) for type in ("a", "b") for n in range(3)
    ]
    assert isinstance(together([])[0:1], list)
    assert Tally(hour=0.0, type="", counts=tuple(range(len(ENDED)))).total == sum(range(len(ENDED)))


def test_waiting_ends_with_the_first_start_and_running_is_the_last_attempt() -> None:
    def run(started: float, ended: float | None) -> Run:
        return Run("host", "user", 1, started, ended)

    story = (Attempt(1, "failed", run(12.0, 13.0)), Attempt(2, "succeeded", run(20.0, 25.5)))

    assert times(10.0, story) == (2.0, 5.5)
    assert times(10.0, ()) == (None, None)
    assert times(10.0, (Attempt(1, "lost", run(12.0, None)),)) == (2.0, None)
