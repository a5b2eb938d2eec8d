"""The contract, by the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskqueue.broker import Broker, connect
from taskqueue.brokers.memory import records
from taskqueue.outcome import NULL, Done, Payload
from taskqueue.testing import BrokerContract, StoreContract
from taskqueue.testing.bench import Bench, item
from taskqueue.testing.dependents import LATER, ONE, blocked_on, finish, later, peek


class TestMemory(BrokerContract):
    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        broker = connect("memory://")
        return lambda: broker


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def broker_factory(self) -> Callable[[], Broker]:
        broker = connect("memory://")
        return lambda: broker


def test_of_what_has_ended_the_latest_are_kept_and_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ENDED", 3)
    broker = connect("memory://")
    bench, store = Bench(lambda: broker), broker.store()

    def end_others() -> None:
        for n in range(10):
            bench.send(item(id=f"other-{n}"))
            finish(bench, {f"other-{n}": ONE})

    bench.send(item(id="a"), item(id="outer"), later("c", "outer"))
    finish(bench, {"outer": Done(promises=("a",)), "a": ONE})
    end_others()
    kept = {record.id for record in store.history()}
    assert kept >= {"a", "outer", "c", "other-9"} and len(kept) <= 6
    finish(bench, {"c": blocked_on("a")}, type=LATER)
    assert [one.payload for one in peek(bench, LATER)[0].inputs] == [NULL, Payload(b"1")]
    finish(bench, {"c": ONE}, type=LATER)
    end_others()

    assert {record.id for record in store.history()} == {"other-7", "other-8", "other-9"}
    bench.close()
