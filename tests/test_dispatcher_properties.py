"""Whatever is in a message: the dispatcher lives, and the message is found again in exactly one place."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hostile import SENT, Sent, received
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from taskqueue.brokers.amqp.message import to_wire
from taskqueue.brokers.memory import MemoryBroker
from taskqueue.config import Config
from taskqueue.formats import ONLY_BUILTIN, parse
from taskqueue.intake import Intake, parsed
from taskqueue.outcome import Dead, Outcome, Send
from taskqueue.workitem import DEAD_LETTERS, DROPPED, INCOMING, Workitem, is_type, worker_queue

BATCH = 10
TURNS = 10_000  # of the event loop, after which what did not come is not coming
CONFIG = Config(max_body=1 << 20, max_types=50)
REASONS = {"malformed", "too many types", "expired", "delivery limit"}


class Watched(MemoryBroker):
    """Keeps what is stored anywhere but in the queues that the dispatcher reads; those are as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.found: defaultdict[str, list[tuple[str, Workitem]]] = defaultdict(list)
        self.results = 0

    def send(self, send: Send) -> None:
        queue, workitem = send.queue, send.workitem
        if queue in (INCOMING, DROPPED):
            super().send(send)
        elif "app_id" in workitem.others:
            self.found[workitem.others["app_id"]].append((queue, workitem))
        else:
            self.results += 1
            assert workitem.headers["status"] == "failed"  # what a reply_to asked for


def check(sent: Workitem, queue: str, found: Workitem, source: str) -> None:
    """Whether this is where `sent` belongs, and as it belongs there."""
    to_wire(found).encode()
    assert found.id == sent.id or not sent.id
    if queue == DEAD_LETTERS:
        assert (found.body, found.content_type, found.reply_to) == (sent.body, sent.content_type, sent.reply_to)
        assert found.headers["reason"] in REASONS
        assert isinstance(found.headers["detail"], str)
        kept = {
            name for name in sent.headers if name not in ("reason", "detail", "attempts", "crashes", "from", "died")
        }
        assert kept <= set(found.headers)
        return
    assert is_type(found.type) and queue == worker_queue(found.type)
    if source == INCOMING:
        expected = parse(sent, max_body=CONFIG.max_body, formats=ONLY_BUILTIN)
        assert (found.type, found.body, found.content_type) == (expected.type, expected.body, expected.content_type)
        assert (found.attempt, found.crashes, found.failures, found.due) == (1, 0, 0, None)
    else:
        assert found.body == sent.body


def decided(workitem: Workitem) -> Outcome:
    return parsed(workitem, max_body=CONFIG.max_body, known=ONLY_BUILTIN)


def all_found(count: int) -> int:
    """Have a dispatcher handle messages, `count` at least; how many there were."""
    broker, done = Watched(), 0

    @settings(
        max_examples=-(-count // BATCH),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(SENT, min_size=BATCH, max_size=BATCH))
    def each(batch: list[Sent]) -> None:
        nonlocal done
        messages: dict[str, tuple[Sent, Workitem]] = {}
        for number, one in enumerate(batch, done):
            one.properties.app_id = str(number)
            messages[str(number)] = one, received(one)
        with broker.lock:
            for one, workitem in messages.values():
                broker.send(Send(one.queue, workitem, goes_on=True))  # no record is needed
        runner.run(settled(len(messages)))
        assert broker.found.keys() == messages.keys()
        for name, (one, workitem) in messages.items():
            [(queue, found)] = broker.found[name]
            check(workitem, queue, found, one.queue)
        broker.found.clear()
        done += len(messages)

    async def settled(number: int) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
            assert not dispatcher.done(), "the dispatcher has ended"
            if len(broker.found) == number:
                break

    async def start() -> tuple[Intake, asyncio.Task[None]]:
        intake = Intake(broker, decided, lambda: CONFIG.max_types)
        return intake, asyncio.create_task(intake.wait(asyncio.Event()))

    async def stop() -> None:
        dispatcher.cancel()
        await intake.drain()

    with asyncio.Runner() as runner:
        intake, dispatcher = runner.run(start())
        each()
        runner.run(stop())
    return done


def test_a_dispatcher_loses_and_multiplies_no_message() -> None:
    assert all_found(500) >= 500


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_dispatcher_loses_and_multiplies_none_of_a_hundred_thousand_messages() -> None:
    assert all_found(100_000) >= 100_000


def test_no_id_writes_a_line_of_its_own_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    sent = Workitem(body=b"{", content_type="application/json", id="mine\nERROR forged\x1b[2J")

    outcome = decided(sent)

    assert outcome == Dead("malformed", "not JSON: Expecting value (character 1)")
    [record] = caplog.records
    assert record.getMessage().startswith("workitem mine ERROR forged [2J is malformed: ")
