"""Promises 1, 3 and 4 under fire: SIGKILL of everything, at random; tests/arena.py accounts for every workitem."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arena import Arena
from databases import PostgreSQL
from installations import Installation
from servers import RabbitMQ
from system import until
from system_postgresql import PostgreSQLSystem
from tracing import tracing

COUNT = 3000
SECONDS = 30.0
LONGEST = 4  # times as long is killed where a slow machine needs that for enough hits
HITS = 30
LONG_COUNT = 20_000
LONG_SECONDS = 200.0  # and all of LONG_COUNT takes a little less
LONG_HITS = 50
# Sent faster than it can be done, however long a commit takes: there is always something running that can be hit.
FAST: dict[str, Any] = {"pace": 0.1, "batch": 20, "managers": 2, "groups": "abcdef"}
SELDOM = ["manager", "manager", "dispatcher", "dispatcher", "dispatcher", *["carrier"] * 4]


@pytest.fixture
def arena(installation: Installation) -> Iterator[Callable[..., Arena]]:
    """Make an arena; arguments as those of Arena."""

    def make(server: RabbitMQ | PostgreSQL | None, **arguments: int | float | str) -> Arena:
        made = Arena(installation, server, **arguments)  # type: ignore[arg-type]
        stack.enter_context(tracing(installation, made.loops))
        stack.enter_context(made.system)
        made.start()
        return made

    with contextlib.ExitStack() as stack:
        yield make


def fire(fight: Arena, seldom: list[str], *, seconds: float = SECONDS, hits: int = HITS) -> dict[str, int]:
    """Send, kill for `seconds` and until enough has been hit, and account for everything."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    thread = threading.Thread(target=fight.sender.run, daemon=True)
    thread.start()
    until(lambda: fight.handlers.stat().st_size, "the first workitem")
    time.sleep(1.5)  # queues that a single node of RabbitMQ has just made are not in its books yet

    due = sorted((chance.uniform(0, seconds), what) for what in seldom)
    start = time.monotonic()
    while (now := time.monotonic() - start) < seconds or ((due or fight.hits() < hits) and now < LONGEST * seconds):
        time.sleep(chance.uniform(0.05, 0.4))
        if due and due[0][0] <= now:
            fight.kill_one(due.pop(0)[1], chance)
        else:
            fight.kill_one("worker", chance)
    thread.join(120)
    fight.finish()

    figures = fight.account()
    print(f"{figures} in {now:.0f} s")
    assert not due
    assert figures["hits"] >= hits
    return figures


@pytest.mark.chaos
@pytest.mark.timeout(420)
def test_on_rabbitmq_nothing_is_lost_or_done_again_without_reason(
    arena: Callable[..., Arena], start_rabbitmq: Callable[..., RabbitMQ]
) -> None:
    fire(arena(start_rabbitmq(), count=COUNT, pace=SECONDS / COUNT), [*SELDOM, "broker", "broker"])


@pytest.mark.chaos
@pytest.mark.timeout(420)
def test_on_sqlite_nothing_is_lost_or_done_again_without_reason(arena: Callable[..., Arena]) -> None:
    fight = arena(None, count=COUNT, pace=SECONDS / COUNT, managers=2, groups="abcd")

    fire(fight, SELDOM)

    # A result is stored in the transaction that ends its delivery: there can't be two.
    assert len(fight.results) == COUNT


@pytest.mark.chaos
@pytest.mark.timeout(420)
def test_on_postgresql_nothing_is_lost_or_done_again_without_reason(
    arena: Callable[..., Arena], start_postgresql: Callable[..., PostgreSQL]
) -> None:
    fight = arena(start_postgresql(fsync=True), count=2 * COUNT, **FAST)

    fire(fight, [*SELDOM, *["broker"] * 4])

    # Result and history are stored in the transaction that ends the delivery: there is one of each.
    assert history(fight) == {"succeeded": len(fight.results)}


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_on_postgresql_nothing_is_lost_in_a_long_time(
    arena: Callable[..., Arena], start_postgresql: Callable[..., PostgreSQL]
) -> None:
    fight = arena(start_postgresql(fsync=True), count=LONG_COUNT, **FAST)

    fire(fight, [*SELDOM, *["broker"] * 4] * 5, seconds=LONG_SECONDS, hits=LONG_HITS)

    assert history(fight) == {"succeeded": len(fight.results)}


def history(fight: Arena) -> dict[object, object]:
    """How many workitems ended how."""
    system = fight.system
    assert isinstance(system, PostgreSQLSystem)
    return dict(system.rows("SELECT state, count(*) FROM taskqueue.history GROUP BY state"))  # type: ignore[arg-type]


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["rabbitmq", "postgresql", "sqlite"])
def test_without_kills_every_workitem_is_received_and_done_exactly_once(
    arena: Callable[..., Arena], request: pytest.FixtureRequest, place: str
) -> None:
    server = None if place == "sqlite" else request.getfixturevalue(f"start_{place}")()
    peace = arena(server, count=500, pace=0.0)

    peace.sender.run()
    peace.finish()

    figures = peace.account()
    assert figures == {"kills": 0, "hits": 0, "started again": 0}
