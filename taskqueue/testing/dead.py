"""What every broker does with dead letters."""

from __future__ import annotations

import asyncio

from taskqueue.broker import DeadLetters, Delivery, Ended
from taskqueue.dead import requeued
from taskqueue.outcome import Done, Failed, Release
from taskqueue.testing.bench import QUEUE, TYPE, Bench, item, items
from taskqueue.workitem import DEAD_LETTERS, INCOMING, Workitem

__all__ = ["DeadLettersContract"]


def letters(count: int, first: int = 0) -> list[Workitem]:
    """Dead letters with the ids `first`, `first` + 1, ..., as whoever gives workitems up stores them."""
    return [letter._replace(headers={"reason": "failed", "from": QUEUE}) for letter in items(first + count)[first:]]


async def look(view: DeadLetters) -> list[Delivery]:
    """All that there is."""
    return [delivery async for delivery in view.look()]


async def shown(view: DeadLetters) -> list[Workitem]:
    """The same, as workitems."""
    return [delivery.workitem for delivery in await look(view)]


async def requeue(view: DeadLetters, *chosen: Delivery) -> list[bool]:
    """Give them another chance."""
    return await view.settle([Ended(delivery, requeued(delivery.workitem)) for delivery in chosen])


class DeadLettersContract:
    """Sentences about what was given up."""

    def test_where_nothing_was_given_up_nothing_is_shown(self, bench: Bench) -> None:
        assert bench.run(lambda: shown(bench.dead_letters())) == []

    def test_looking_changes_nothing(self, bench: Bench) -> None:
        async def test() -> tuple[list[Workitem], ...]:
            view = bench.dead_letters()
            first, again = await shown(view), await shown(view)
            await view.close()
            view = bench.dead_letters()
            another = await shown(view)
            await view.close()
            return first, again, another, await bench.read(DEAD_LETTERS, 250)

        sent = letters(250)
        bench.send(*sent, queue=DEAD_LETTERS)

        first, again, another, left = bench.run(test)

        assert first == again == another == left
        assert [letter.id for letter in first] == [letter.id for letter in sent]
        assert {(letter.headers["reason"], letter.body) for letter in first} >= {("failed", b"0"), ("failed", b"249")}

    def test_who_looks_no_further_changes_nothing_either(self, bench: Bench) -> None:
        async def test() -> list[str]:
            view = bench.dead_letters()
            looking = view.look()
            some = [(await anext(looking)).workitem.id for _ in range(3)]
            assert some == ["0", "1", "2"]
            await looking.aclose()  # type: ignore[attr-defined]
            return [letter.id for letter in await shown(view)]

        bench.send(*letters(20), queue=DEAD_LETTERS)

        assert bench.run(test) == [str(n) for n in range(20)]

    def test_letters_that_come_meanwhile_stand_behind_the_others(self, bench: Bench) -> None:
        async def test() -> list[str]:
            view = bench.dead_letters()
            looking = view.look()
            await anext(looking)
            await asyncio.to_thread(bench.send, *letters(20, first=20), queue=DEAD_LETTERS)
            assert len([delivery async for delivery in looking]) == 19
            await view.close()
            return [letter.id for letter in await shown(bench.dead_letters())]

        bench.send(*letters(20), queue=DEAD_LETTERS)

        assert bench.run(test) == [str(n) for n in range(40)]

    def test_two_may_look_at_the_same_time(self, bench: Bench) -> None:
        async def one() -> list[str]:
            view = bench.dead_letters()
            ids = [letter.id for letter in await shown(view)]
            await view.close()
            return ids

        async def test() -> list[list[str]]:
            return [*await asyncio.gather(one(), one(), one()), await one()]

        sent = bench.send(*letters(50), queue=DEAD_LETTERS)

        assert bench.run(test) == [sent] * 4

    def test_a_requeued_letter_is_the_same_workitem_with_counters_anew(self, bench: Bench) -> None:
        work = item(
            b"work",
            id="1",
            content_type="application/json",
            headers={"mine": "kept"},
            correlation_id="question",
            reply_to="client",
            reference="order:1",
            priority=3,
            attempt=4,
            crashes=2,
            failures=3,
        )

        async def test() -> Workitem:
            await bench.end_one(Failed("no", "Traceback ..."))
            view = bench.dead_letters()
            (letter,) = await look(view)
            assert letter.workitem.headers["attempts"] == 4
            assert await requeue(view, letter) == [True]
            assert await look(view) == []
            (again,) = await bench.read(QUEUE)
            return again

        bench.send(work)

        assert bench.run(test) == work._replace(attempt=1, crashes=0, failures=0)

    def test_what_no_dispatcher_understood_goes_to_the_dispatcher_again(self, bench: Bench) -> None:
        async def test() -> Workitem:
            view = bench.dead_letters()
            assert await requeue(view, *await look(view)) == [True]
            (again,) = await bench.read(INCOMING)
            return again

        headers = {"reason": "malformed", "from": INCOMING, "mine": 1}
        bench.send(Workitem(body=b"?", id="1", content_type="image/png", headers=headers), queue=DEAD_LETTERS)

        again = bench.run(test)

        assert (again.id, again.body, again.content_type, again.headers) == ("1", b"?", "image/png", {"mine": 1})

    def test_some_are_requeued_some_discarded_and_the_others_stay_in_order(self, bench: Bench) -> None:
        async def test() -> tuple[list[str], list[str]]:
            view = bench.dead_letters()
            there = await look(view)
            assert await requeue(view, there[7], there[3]) == [True, True]
            ended = [Ended(there[5], Done(None)), Ended(there[0], Done(None)), Ended(there[1], Release())]
            assert await view.settle(ended) == [True] * 3
            again = [workitem.id for workitem in await bench.read(QUEUE, 2)]
            return again, [letter.id for letter in await shown(view)]

        bench.send(*letters(10), queue=DEAD_LETTERS)

        again, left = bench.run(test)

        assert again == ["7", "3"]
        assert left == ["1", "2", "4", "6", "8", "9"]

    def test_only_one_can_have_a_letter(self, bench: Bench) -> None:
        async def one() -> int:
            view = bench.dead_letters()
            done = await requeue(view, *await look(view))
            await view.close()
            return sum(done)

        async def test() -> tuple[int, list[str]]:
            done = await asyncio.gather(one(), one())
            again = [workitem.id for workitem in await bench.read(QUEUE, 30)]
            assert await bench.is_empty(QUEUE)
            return sum(done), sorted(again)

        sent = bench.send(*letters(30), queue=DEAD_LETTERS)

        assert bench.run(test) == (30, sorted(sent))

    def test_what_was_shown_counts_no_more_after_the_next_close(self, bench: Bench) -> None:
        async def test() -> list[str]:
            view = bench.dead_letters()
            (late,) = await look(view)
            await view.close()
            await view.close()
            assert await requeue(view, late) == [False]
            assert await bench.is_empty(QUEUE)
            return [letter.id for letter in await shown(bench.dead_letters())]

        bench.send(*letters(1), queue=DEAD_LETTERS)

        assert bench.run(test) == ["0"]

    def test_a_type_of_a_letter_is_the_one_it_had(self, bench: Bench) -> None:
        async def test() -> str:
            (letter,) = await shown(bench.dead_letters())
            return letter.type

        bench.send(*letters(1), queue=DEAD_LETTERS)

        assert bench.run(test) == TYPE
