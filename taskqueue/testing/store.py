"""The store's contract: sentences about every store, beside those about every broker."""

from __future__ import annotations

import os
import threading

import pytest

from taskqueue.broker import Ended, Underway
from taskqueue.errors import UnknownTask
from taskqueue.lifecycle import State
from taskqueue.outcome import Crashed, Dead, Done, Failed, Forward, Outcome, Payload, Release, Retry, TimedOut
from taskqueue.record import Progress, Record, Run
from taskqueue.store import Store
from taskqueue.testing.asking import AskingContract
from taskqueue.testing.bench import LIMIT, RULES, TYPE, Bench, Contract, item
from taskqueue.testing.blocking import BlockingContract
from taskqueue.testing.cancelling import CancellingContract
from taskqueue.testing.depending import DependingContract
from taskqueue.testing.inputs import InputsContract
from taskqueue.testing.named import NamedContract
from taskqueue.testing.promises import PromisesContract
from taskqueue.testing.recorded import RUN, RecordedResultsContract
from taskqueue.testing.sizes import SizesContract
from taskqueue.testing.upkeep import UpkeepContract
from taskqueue.workitem import DEAD_LETTERS, INCOMING

__all__ = ["StoreContract"]

FAR = 4_000_000_000.0  # POSIX seconds that no test lives to see


@pytest.mark.timeout(4 * LIMIT)
class StoreContract(
    BlockingContract,
    CancellingContract,
    DependingContract,
    InputsContract,
    NamedContract,
    PromisesContract,
    SizesContract,
    AskingContract,
    UpkeepContract,
    RecordedResultsContract,
    Contract,
):
    """Subclass it with a fixture `broker_factory`: see `taskqueue.testing`."""

    def test_an_id_that_never_was_is_unknown(self, store: Store) -> None:
        for ask in (store.record, store.cancel, lambda id: store.wait(id, timeout=0)):
            with pytest.raises(UnknownTask, match="never-sent"):
                ask("never-sent")

    def test_what_was_sent_waits_and_says_who_sent_it(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(reference="order:4711", priority=3))

        record = store.record(id)

        assert (record.state, record.type, record.reference, record.priority) == (State.WAITING, TYPE, "order:4711", 3)
        assert record.sender.endswith(f":{os.getpid()}")
        assert record.sent > 0
        assert (record.attempts, record.ended, record.running, record.result) == ((), None, None, None)

    def test_what_was_sent_for_later_is_scheduled(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(due=FAR))

        record = store.record(id)
        assert record.state == State.SCHEDULED
        assert record.due is not None and abs(record.due - FAR) < LIMIT  # by the store's own clock

    def test_what_a_carrier_holds_still_waits(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> State:
            await bench.lent(bench.consumer(), 1)
            return store.record(id).state

        assert bench.run(test) == State.WAITING

    def test_what_is_reported_runs_and_says_how_far_it_is(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        run, progress = Run(host="h", user="u", pid=1, started=5.0), Progress(done=3, total=10, note="pages", at=6.0)

        async def test() -> Record:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            await consumer.report([Underway(delivery, run, progress)])
            return store.record(id)

        record = bench.run(test)

        assert (record.state, record.running, record.progress) == (State.RUNNING, run, progress)

    def test_what_was_reported_again_and_again_ends_with_what_it_said_last(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> list[bool]:
            consumer = bench.consumer()
            (delivery,) = await bench.lent(consumer, 1)
            for done in range(3):
                await consumer.report([Underway(delivery, RUN, Progress(done=done, total=3, note="", at=6.0))])
            counted = await consumer.settle([Ended(delivery, Done(Payload(b"5")), RULES, RUN)])
            await consumer.report([Underway(delivery, RUN)])
            return counted

        assert bench.run(test) == [True]
        record = store.record(id)
        assert (record.state, record.running) == (State.SUCCEEDED, None)
        assert record.progress is not None and record.progress.done == 2

    def test_a_success_has_its_run_its_log_and_its_result(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        self.end(bench, Done(Payload(b"5", "text/plain")), run=RUN, log=("one", "two"))

        record = store.record(id)
        (attempt,) = record.attempts
        assert (record.state, record.result) == (State.SUCCEEDED, Payload(b"5", "text/plain"))
        assert record.ended is not None and record.ended >= record.sent
        assert (attempt.number, attempt.outcome, attempt.run, attempt.log) == (1, "succeeded", RUN, ("one", "two"))

    @pytest.mark.parametrize(
        ("outcome", "state", "what", "error"),
        [
            (Failed("ValueError: x", "Traceback ..."), State.FAILED, "failed", "ValueError: x"),
            (TimedOut(5.0), State.DEAD, "timed out", "time limit of 5 s"),
            (Dead("rejected", "not mine"), State.DEAD, "rejected", "not mine"),
            (Retry(0.0, "later", "attempt"), State.RETRYING, "retry", "later"),
            (Retry(0.0, "OSError", "failure"), State.RETRYING, "failed", "OSError"),
            (Crashed("SIGSEGV"), State.RETRYING, "crashed", "SIGSEGV"),
        ],
        ids=lambda value: str(value) if isinstance(value, State) else "",
    )
    def test_an_attempt_that_did_not_succeed_says_why(
        self, bench: Bench, store: Store, outcome: Outcome, state: State, what: str, error: str
    ) -> None:
        (id,) = bench.send(item())

        self.end(bench, outcome, run=RUN)

        record = store.record(id)
        (attempt,) = record.attempts
        assert (record.state, attempt.outcome, attempt.error, attempt.run) == (state, what, error, RUN)
        assert (attempt.again is None) == (record.ended is not None)

    def test_all_attempts_are_there_first_to_last(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        for outcome in (Retry(0.0, "first"), Crashed("SIGKILL"), Failed("third", "traceback")):
            self.end(bench, outcome, run=RUN)

        record = store.record(id)
        assert [(a.number, a.outcome, a.error) for a in record.attempts] == [
            (1, "failed", "first"), (2, "crashed", "SIGKILL"), (3, "failed", "third"),
        ]  # fmt: skip
        assert record.attempts[-1].traceback == "traceback"

    def test_a_crash_too_many_is_death(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        for _ in range(RULES.max_crashes):
            self.end(bench, Crashed("SIGSEGV"), run=RUN)

        assert (store.record(id).state, len(store.record(id).attempts)) == (State.DEAD, RULES.max_crashes)

    def test_a_release_that_never_ran_leaves_no_trace(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        self.end(bench, Release())

        assert (store.record(id).state, store.record(id).attempts) == (State.WAITING, ())

    def test_a_release_of_what_ran_is_an_attempt(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        self.end(bench, Release(), run=RUN)

        record = store.record(id)
        assert (record.state, [attempt.outcome for attempt in record.attempts]) == (State.WAITING, ["released"])

    def test_what_its_carrier_gave_up_while_it_ran_is_lost_until_it_starts_again(
        self, bench: Bench, store: Store
    ) -> None:
        ran, held = bench.send(item(), item())
        again = RUN._replace(pid=12, ended=None)

        async def lose() -> None:
            broker = bench.another()
            consumer = broker.consumer(f"worker_{TYPE}", reserve=2)
            lent = await bench.lent(consumer, 2)
            await consumer.report([Underway(lent[0], RUN._replace(ended=None))])
            await broker.close()

        bench.run_once(lose)
        record = store.record(ran)
        assert (record.state, record.running) == (State.LOST, None)
        assert [(a.number, a.outcome, a.run) for a in record.attempts] == [(1, "lost", RUN._replace(ended=None))]
        assert (store.record(held).state, store.record(held).attempts) == (State.WAITING, ())
        assert [found.id for found in store.history(states=[State.LOST])] == [ran]

        async def start_again() -> tuple[State, State]:
            consumer = bench.consumer()
            delivery, _ = await bench.lent(consumer, 2)
            lent = store.record(ran).state
            await consumer.report([Underway(delivery, again)])
            running = store.record(ran).state
            assert await consumer.settle([Ended(delivery, Done(None), RULES, again._replace(ended=9.0))]) == [True]
            return lent, running

        assert bench.run(start_again) == (State.LOST, State.RUNNING)
        record = store.record(ran)
        assert record.state == State.SUCCEEDED
        assert [(a.number, a.outcome) for a in record.attempts] == [(1, "lost"), (1, "succeeded")]

    def test_what_goes_through_the_dispatcher_is_one_life(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(type=""), queue=INCOMING)
        before = store.record(id)

        self.end(bench, Forward(item(id=id, reference="order:1")), queue=INCOMING)

        record = store.record(id)
        assert (before.state, before.type) == (State.WAITING, "")
        assert (record.state, record.type, record.reference, record.sent) == (
            State.WAITING, TYPE, "order:1", before.sent,
        )  # fmt: skip
        assert record.attempts == ()

    def test_what_is_malformed_is_dead(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(type=""), queue=INCOMING)

        self.end(bench, Dead("malformed", "no JSON"), queue=INCOMING)

        record = store.record(id)
        assert (record.state, record.attempts[0].error) == (State.DEAD, "no JSON")

    def test_what_expired_is_expired_without_an_attempt(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item(expiration=0.0))

        async def test() -> bool:
            return await bench.nothing_comes(bench.consumer())

        assert bench.run(test)
        assert (store.record(id).state, store.record(id).attempts) == (State.EXPIRED, ())

    def test_a_late_answer_changes_nothing(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        async def test() -> list[bool]:
            late = bench.consumer()
            (delivery,) = await bench.lent(late, 1)
            await late.close()
            return await late.settle([Ended(delivery, Done(Payload(b"late")), RULES, RUN)])

        assert bench.run(test) == [False]
        assert (store.record(id).state, store.record(id).result) == (State.WAITING, None)

    def test_a_requeued_dead_letter_lives_again(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        self.end(bench, Failed("no"), run=RUN)

        async def requeue() -> list[bool]:
            view = bench.dead_letters()
            letters = [delivery async for delivery in view.look()]
            return await view.settle([Ended(letter, Forward(item(id=id))) for letter in letters])

        assert bench.run(requeue) == [True]
        assert (store.record(id).state, store.record(id).ended) == (State.WAITING, None)

    def test_results_and_dead_letters_have_no_record_of_their_own(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        self.end(bench, Failed("no", "", Payload(b"{}")), run=RUN)

        assert [record.id for record in store.history()] == [id]

    def test_history_is_by_reference_type_and_state_the_latest_first(self, bench: Bench, store: Store) -> None:
        first, second, other = bench.send(
            item(reference="order:1", id="a"), item(reference="order:1", id="b"), item(reference="order:2", id="c")
        )
        self.end(bench, Done(None))

        assert [r.id for r in store.history()] == [other, second, first]
        assert [r.id for r in store.history(limit=2)] == [other, second]
        assert [r.id for r in store.history(reference="order:1")] == [second, first]
        assert [r.id for r in store.history(states=[State.SUCCEEDED])] == [first]
        assert [r.id for r in store.history(states=[State.WAITING], reference="order:1")] == [second]
        assert store.history(type="another") == []

    def test_waiting_ends_when_the_workitem_has_ended(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        found: list[Record] = []
        waiting = threading.Thread(target=lambda: found.append(store.wait(id, timeout=LIMIT)))
        waiting.start()

        self.end(bench, Done(Payload(b"7")), run=RUN)
        waiting.join(LIMIT)

        assert [(record.state, record.result) for record in found] == [(State.SUCCEEDED, Payload(b"7"))]

    def test_waiting_ends_when_the_time_is_over(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        assert store.wait(id, timeout=0.01).state == State.WAITING

    def test_what_is_cancelled_is_never_lent(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())

        assert store.cancel(id)

        async def test() -> bool:
            return await bench.nothing_comes(bench.consumer())

        assert bench.run(test)
        assert store.record(id).state == State.CANCELLED
        assert not store.cancel(id)

    def test_what_has_ended_is_not_cancelled(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        self.end(bench, Done(None))

        assert not store.cancel(id)
        assert store.record(id).state == State.SUCCEEDED

    def test_a_dead_letter_is_no_longer_wanted_when_it_was_cancelled(self, bench: Bench, store: Store) -> None:
        """Cancelling leaves nothing behind: no dead letter, no result."""
        (id,) = bench.send(item())
        store.cancel(id)

        async def test() -> tuple[bool, bool]:
            return await bench.is_empty(DEAD_LETTERS), await bench.is_empty("results")

        assert bench.run(test) == (True, True)

    def end(
        self, bench: Bench, outcome: Outcome, *, run: Run | None = None, log: tuple[str, ...] = (), queue: str = ""
    ) -> None:
        """Receive one workitem and end it, with the broker open for more."""

        async def test() -> None:
            broker = bench.another()
            consumer = broker.consumer(queue or f"worker_{TYPE}", reserve=1)
            (delivery,) = await bench.lent(consumer, 1)
            assert await consumer.settle([Ended(delivery, outcome, RULES, run, log)]) == [True]
            await broker.close()

        bench.run_once(test)
