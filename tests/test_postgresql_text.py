"""Text that PostgreSQL can not store."""

from __future__ import annotations

from embedded import drain, run
from lending import QUEUE, Database

from taskqueue.broker import connect
from taskqueue.workitem import Workitem


def test_text_that_postgresql_cannot_store_survives(database: Database) -> None:
    sent = Workitem(
        body=b"\0\xff",
        id="id\0 \ud800" + "x" * 5000,
        type="t",
        reference="o\0" + "\N{SNOWMAN}" * 3000,
        headers={"h\0": "\ud800", "n": 1 << 70},
        expiration=1e300,
        priority=1 << 40,
        attempt=1 << 40,
    )
    producer = connect(database.url).producer()
    producer.send([sent], queue=QUEUE)
    producer.close()

    (found,) = run(database.url, lambda broker: drain(broker.consumer(QUEUE, reserve=1), 1))

    kept = found.workitem
    assert (kept.id, kept.reference, kept.headers, kept.body) == (sent.id, sent.reference, sent.headers, sent.body)
    assert (kept.expiration, kept.priority) == (sent.expiration, sent.priority)
