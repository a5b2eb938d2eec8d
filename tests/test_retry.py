"""How long to wait before the next try."""

from __future__ import annotations

import pytest

from taskqueue.retry import backoff


def test_it_doubles_up_to_the_maximum() -> None:
    waits = [backoff(n, base=1.0, maximum=10.0, jitter=1.0) for n in range(6)]

    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@pytest.mark.parametrize(("jitter", "wait"), [(0.0, 2.0), (0.5, 3.0), (1.0, 4.0)])
def test_jitter_takes_away_up_to_a_half(jitter: float, wait: float) -> None:
    assert backoff(2, base=1.0, maximum=10.0, jitter=jitter) == wait


def test_jitter_spreads_at_the_maximum_as_well() -> None:
    assert backoff(99, base=1.0, maximum=10.0, jitter=0.0) == 5.0


def test_a_million_tries_do_not_overflow() -> None:
    assert backoff(1_000_000, base=3600.0, maximum=3600.0, jitter=1.0) == 3600.0


def test_no_base_is_no_wait() -> None:
    assert backoff(5, base=0.0, maximum=10.0, jitter=1.0) == 0.0
