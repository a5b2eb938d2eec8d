"""How much is held, and how much is handed over at a time."""

from __future__ import annotations

import pytest

from taskqueue.carrier.pace import (
    MAX_BATCH_BYTES,
    MAX_DEPTH,
    MAX_RESERVE,
    batch_size,
    depth,
    is_soon,
    mean_run_time,
    reserve,
)


class TestDepth:
    def test_nothing_waits_behind_a_task_of_unknown_length(self) -> None:
        assert depth(None) == 1

    @pytest.mark.parametrize(
        ("run_time", "expected"),
        [(0.0, MAX_DEPTH), (1e-6, MAX_DEPTH), (0.0002, 25), (0.0025, 2), (0.004, 1), (60.0, 1)],
    )
    def test_it_is_as_many_as_are_done_in_a_few_milliseconds(self, run_time: float, expected: int) -> None:
        assert depth(run_time) == expected


class TestReserve:
    def test_what_the_operator_asks_for_holds(self) -> None:
        assert reserve(4, 0.000001, 7) == reserve(4, 3600.0, 7) == reserve(4, None, 7) == 7

    def test_while_nothing_is_known_it_is_one_for_each_slot(self) -> None:
        assert reserve(3, None, 0) == 3

    def test_long_tasks_are_left_to_whoever_is_free_first(self) -> None:
        assert reserve(3, 3600.0, 0) == 3

    def test_short_ones_are_held_for_a_quarter_of_a_second(self) -> None:
        assert reserve(2, 0.010, 0) == 2 + 50

    def test_it_is_bounded_but_never_below_what_runs_at_once(self) -> None:
        assert reserve(8, 0.0, 0) == reserve(8, 1e-12, 0) == MAX_RESERVE
        assert reserve(5000, 0.1, 0) == 5000


class TestIsSoon:
    def test_nobody_knows_before_the_first_has_ended(self) -> None:
        assert not is_soon(1, 1, None)

    def test_slots_share_the_work(self) -> None:
        assert not is_soon(20, 1, 0.2)
        assert is_soon(20, 10, 0.2)


class TestMeanRunTime:
    def test_it_begins_with_the_first(self) -> None:
        assert mean_run_time(None, 5.0) == 5.0

    def test_it_follows_slow_ones_faster_than_quick_ones(self) -> None:
        assert mean_run_time(1.0, 2.0) - 1.0 > 1.0 - mean_run_time(1.0, 0.0)

    def test_it_comes_to_what_stays_the_same(self) -> None:
        mean = 10.0
        for _ in range(300):
            mean = mean_run_time(mean, 0.001)
        assert mean == pytest.approx(0.001, rel=0.01)


class TestBatchSize:
    def test_it_is_what_there_is_room_for(self) -> None:
        assert batch_size([1] * 10, 4) == 4
        assert batch_size([1] * 3, 4) == 3

    def test_it_is_bounded_in_bytes_but_for_the_first(self) -> None:
        assert batch_size([MAX_BATCH_BYTES * 9, 1, 1], 3) == 1
        assert batch_size([1, MAX_BATCH_BYTES, 1], 3) == 1
        assert batch_size([MAX_BATCH_BYTES // 2] * 5, 5) == 2
