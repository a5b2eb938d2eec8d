"""A place is not one place: a successor works while the one before it still does."""

from __future__ import annotations

from taskqueue.carrier.lane import Lane

FAILS = ("test_lane.py::TestRecycling::test_a_successor_gets_nothing_before_the_old_one_has_ended",)

Lane._give_places = lambda self: None
