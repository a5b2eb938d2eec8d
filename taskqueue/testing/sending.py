"""What every broker does with what is sent, and with replies."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from taskqueue.broker import connect
from taskqueue.errors import Unsupported
from taskqueue.outcome import (
    Done,
    Payload,
)
from taskqueue.testing.bench import LIMIT, QUEUE, RULES, Bench, item, items, settle
from taskqueue.workitem import INCOMING, Workitem, worker_queue

__all__ = ["SendingContract"]

HEADERS: dict[str, object] = {
    "text": "Grüße ☃",
    "empty": "",
    "yes": True,
    "no": False,
    "small": -7,
    "large": 1 << 40,
    "float": 0.1,
    "bytes": b"\x00\xff",
    "none": None,
    "decimal": Decimal("12.34"),
    "time": datetime(2026, 11, 21, 12, 0, tzinfo=UTC),
    "list": [1, "two", [3.5, None]],
    "table": {"a": {"b": [True, {"c": "d"}]}},
}


class SendingContract:
    """Sentences about producers."""

    def test_what_is_no_connection_of_a_caller_is_refused_saying_what_does_it(self, bench: Bench) -> None:
        does = "expected a connection" if bench.broker.capabilities.transactions else "postgresql:// and sqlite:///"
        with pytest.raises(Unsupported, match=does):
            bench.broker.using(object())

    def test_a_process_of_its_own_reaches_the_same_place(self, bench: Bench) -> None:
        options = bench.broker.apart()
        if options is None:
            pytest.skip("this broker declares that its carriers need no process of their own")
        (id,) = bench.send(item())

        async def test() -> str:
            broker = connect(options)
            consumer = broker.consumer(QUEUE, reserve=1)
            (delivery,) = await bench.lent(consumer, 1)
            assert await settle(consumer, [delivery]) == [True]
            await broker.close()
            return delivery.workitem.id

        assert bench.run(test) == id

    def test_who_keeps_no_records_says_who_knows_what_depends_on_others_and_what_is_unique(self, bench: Bench) -> None:
        if bench.broker.capabilities.store:
            pytest.skip("this broker declares that it is a store")
        with pytest.raises(Unsupported, match="depends on other work: postgresql:// and sqlite:/// have"):
            bench.send(item(after=("1",)))
        with pytest.raises(Unsupported, match="unique ids: postgresql:// and sqlite:/// have"):
            bench.producer().send([item(id="1")], unique=True)

        assert bench.run(lambda: bench.is_empty(QUEUE))

    def test_send_stores_all_and_returns_their_ids_in_order(self, bench: Bench) -> None:
        sent = bench.send(*items(250))

        received = bench.run(lambda: bench.read(QUEUE, 250))

        assert sent == [str(n) for n in range(250)]
        assert [workitem.id for workitem in received] == sent

    def test_send_makes_ids_where_they_are_missing(self, bench: Bench) -> None:
        first, named, second = bench.send(item(), item(id="mine"), item())

        received = bench.run(lambda: bench.read(QUEUE, 3))

        assert [workitem.id for workitem in received] == [first, "mine", second]
        assert len({first, second, ""}) == 3
        assert named == "mine"

    def test_nothing_is_sent_when_there_is_nothing_to_send(self, bench: Bench) -> None:
        assert bench.send() == []

    def test_a_workitem_without_a_type_goes_to_the_queue_that_is_named(self, bench: Bench) -> None:
        bench.send(Workitem(body=b"x", content_type="text/plain"), queue=INCOMING)

        (received,) = bench.run(lambda: bench.read(INCOMING))

        assert (received.body, received.type, received.content_type) == (b"x", "", "text/plain")

    def test_all_properties_survive(self, bench: Bench) -> None:
        sent = item(
            b"body",
            id="id",
            content_type="application/json",
            content_encoding="utf-8",
            headers=HEADERS,
            correlation_id="correlated",
            reply_to="somewhere",
            expiration=3600.5,
            timestamp=1_700_000_000,
            priority=3,
            reference="order:4711",
            attempt=4,
            crashes=2,
            failures=1,
            others={"type": "t", "app_id": "a", "cluster_id": "c"},
        )
        bench.send(sent)

        (received,) = bench.run(lambda: bench.read(QUEUE))

        assert received == sent

    @pytest.mark.parametrize("body", [b"", b"\x00\xff" * 1000, bytes(1 << 20)], ids=["empty", "binary", "large"])
    def test_a_body_arrives_as_it_was(self, bench: Bench, body: bytes) -> None:
        bench.send(item(body))

        (received,) = bench.run(lambda: bench.read(QUEUE))

        assert received.body == body

    def test_threads_may_share_a_producer(self, bench: Bench) -> None:
        producer = bench.producer()
        threads = [
            threading.Thread(target=lambda n=n: producer.send([item(id=f"{n}.{m}") for m in range(20)]))
            for n in range(5)
        ]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        received = bench.run(lambda: bench.read(QUEUE, 100))

        assert {workitem.id for workitem in received} == {f"{n}.{m}" for n in range(5) for m in range(20)}

    def test_a_producer_may_be_closed_twice(self, bench: Bench) -> None:
        producer = bench.producer()
        producer.send([item()])

        producer.close()
        producer.close()

    def test_a_reply_comes_back_to_its_producer(self, bench: Bench) -> None:
        producer, other = bench.producer(), bench.producer()
        other.send([item(id="others")], queue=worker_queue("other"), reply=True)

        sent = producer.send([item(id="1"), item(id="2", correlation_id="mine")], reply=True)

        async def test() -> None:
            consumer = bench.consumer()
            deliveries = await bench.lent(consumer, 2)
            for delivery in deliveries:
                answer = Payload(delivery.workitem.id.encode())
                assert await settle(consumer, [delivery], Done(answer), RULES) == [True]

        bench.run(test)
        replies = [producer.next_reply(timeout=LIMIT) for _ in sent]

        assert {(r.correlation_id, r.body) for r in replies if r is not None} == {("1", b"1"), ("mine", b"2")}
        assert producer.next_reply(timeout=0.05) is None
        assert other.next_reply(timeout=0) is None
