"""What a store does now and then, and what it knows of hours: sentences about every store."""

from __future__ import annotations

import time
from collections.abc import Sequence

from taskqueue.broker import Ended
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Done, Failed, Outcome
from taskqueue.record import Run
from taskqueue.statistics import percentile
from taskqueue.store import Store
from taskqueue.testing.bench import QUEUE, RULES, TYPE, Bench, item
from taskqueue.upkeep import Keeping

__all__ = ["UpkeepContract"]

NOTHING = tuple(0 for _ in ENDED)


class UpkeepContract:
    """Sentences about chores and statistics."""

    def test_statistics_count_what_ended_just_now_by_type_and_outcome(self, bench: Bench, store: Store) -> None:
        begun = time.time()
        bench.send(*(item(id=str(n)) for n in range(4)))
        bench.send(item(id="other", type="another"))
        outcomes: list[Outcome] = [Done(None), Done(None), Failed("no")]

        run = Run("host", "user", 1, begun + 100, begun + 102, 0.0, None)
        self.end_first(bench, outcomes, run)

        counts = dict.fromkeys(ENDED, 0)
        tallies = store.statistics(type=TYPE)
        for tally in tallies:
            for state, count in zip(ENDED, tally.counts, strict=True):
                counts[state] += count
        assert counts == {**dict.fromkeys(ENDED, 0), State.SUCCEEDED: 2, State.FAILED: 1}
        assert {tally.type for tally in store.statistics()} == {TYPE}
        waited, ran = (percentile(part, 0.5) for part in (tallies[0].waited, tallies[0].ran))
        assert waited is not None and 90 < waited < 110
        assert ran is not None and 1.9 < ran < 2.1

    def test_what_is_young_is_kept_and_counted_once(self, bench: Bench, store: Store) -> None:
        (id,) = bench.send(item())
        self.end_first(bench, [Done(None)])

        rounds = [store.maintain(Keeping()) for _ in range(2)]

        assert [done.records for done in rounds] == [0, 0]
        assert store.record(id).state == State.SUCCEEDED
        assert sum(tally.total for tally in store.statistics()) == 1

    def test_statistics_of_another_type_or_of_later_are_empty(self, bench: Bench, store: Store) -> None:
        bench.send(item())
        self.end_first(bench, [Done(None)])

        assert store.statistics(type="another") == []
        assert store.statistics(since=time.time() + 7200) == []

    def end_first(self, bench: Bench, outcomes: Sequence[Outcome], run: Run | None = None) -> None:
        """End the first workitems that wait, each in its way."""

        async def test() -> None:
            broker = bench.another()
            consumer = broker.consumer(QUEUE, reserve=len(outcomes))
            lent = await bench.lent(consumer, len(outcomes))
            ended = [Ended(delivery, outcome, RULES, run) for delivery, outcome in zip(lent, outcomes, strict=True)]
            assert await consumer.settle(ended) == [True] * len(ended)
            await broker.close()

        bench.run_once(test)
