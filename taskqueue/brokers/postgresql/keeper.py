"""What has to be done with the schema now and then: in small transactions, over a connection of its own."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Any

import psycopg

from taskqueue.broker import Options
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.process import home, is_gone
from taskqueue.brokers.postgresql.rows import array
from taskqueue.brokers.postgresql.session import Translated, connect
from taskqueue.errors import BrokerError
from taskqueue.upkeep import HOUR, Keeping, Round

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

BATCH = 1000  # rows in a transaction, about


class Keeper:
    """In the thread that calls it; `close` comes from any other one."""

    def __init__(self, place: Place, options: Options) -> None:
        self._place = place
        self._options = options
        self._closing = threading.Event()
        self._using = threading.Lock()
        self._connection: psycopg.Connection | None = None

    def round(self, keeping: Keeping) -> Round:
        """All that is to be done, until nothing is left of it."""
        with self._using:
            connection = connect(self._place)
            self._connection = connection
            try:
                return self._round(keeping)
            finally:
                self._connection = None
                connection.close()

    def close(self) -> None:
        """End a round that is under way."""
        self._closing.set()
        connection = self._connection
        if connection is not None and not connection.closed:
            connection.cancel()

    def _round(self, keeping: Keeping) -> Round:
        carriers = self._adopt()
        tidied = self._tidy(keeping)
        if tidied is None:
            return Round(busy=True, carriers=carriers)
        results, letters, made = tidied
        hours = sum(1 for _ in iter(lambda: self._call("roll_up()"), None))
        mended = self._mend()
        while (dropped := self._call("drop_results(%s)", BATCH)) > 0:
            results += dropped
        kept, days, records = keeping.default, 0, 0
        while (dropped := self._call("drop_day(%s, %s)", kept.age, kept.most)) is not None and dropped >= 0:
            days, records = days + 1, records + dropped
        if dropped is None:  # else there is a day that will go whole, later
            records += self._drop_records(keeping)
        self._call("drop_statistics(%s)", keeping.statistics)
        return Round(
            carriers=carriers, results=results, dead_letters=letters, records=records, mended=mended, days=days,
            made=made, hours=hours,
        )  # fmt: skip

    def _rows(self, call: str, *arguments: object) -> list[tuple[Any, ...]]:
        """What a function of the schema returns, in a transaction of its own, and a rest that is as long."""
        connection = self._connection
        assert connection is not None
        begun = time.monotonic()
        with Translated(self._place):
            text = f'SELECT * FROM "{self._place.schema}".{call}'.encode()
            rows = connection.execute(text, arguments, binary=True).fetchall()
        if self._closing.wait(time.monotonic() - begun):
            raise BrokerError(f"{self._place.shown}: closed in the middle of its chores")
        return rows

    def _call(self, call: str, *arguments: object) -> Any:
        return self._rows(call, *arguments)[0][0]

    def _adopt(self) -> int:
        """What dead carriers had is lent again; those of this host are dead when their process is gone."""
        neighbours = self._call("neighbours(0, %s)", home())
        dead = [number for number, pid, since in neighbours if is_gone(pid, since)]
        return len(self._call("adopt(0, %s)", array(dead)))

    def _tidy(self, keeping: Keeping) -> tuple[int, int, int] | None:
        """How many results and dead letters were dropped, and partitions made; None: somebody else is at it."""
        options, sums = self._options, [0, 0, 0]
        keeps = json.dumps([{"type": type, "age": keep.age, "most": keep.most} for type, keep in keeping.types.items()])
        asked = options.results_queue, options.results_max_length, options.dead_retention, keeps, BATCH
        while True:
            found = self._rows("tidy(%s, %s, %s, %s, %s)", *asked)
            if not found:
                return None
            sums = [before + more for before, more in zip(sums, found[0], strict=True)]
            if max(found[0][:2]) < BATCH:
                results, letters, made = sums
                return results, letters, made

    def _mend(self) -> int:
        """Look through all that waits for other work; how many waited for what had ended."""
        reached, mended = -1, 0
        while found := self._rows("mend(%s, %s)", reached, BATCH):
            reached, more = found[0]
            mended += more
            if reached is None:
                break
        return mended

    def _drop_records(self, keeping: Keeping) -> int:
        """Hour by hour, in pieces with about a batch of records each."""
        kept, dropped = keeping.default, 0
        for hour, type, records in self._rows("droppable(%s, %s)", kept.age, kept.most):
            pieces = max(1, math.ceil(records / BATCH))
            for n in range(pieces):
                since, until = (hour + HOUR * part / pieces for part in (n, n + 1))
                asked = type, since, until, n == pieces - 1
                found = self._call("drop_records(%s, %s::float8, %s::float8, %s)", *asked)
                if found is None:
                    return dropped
                dropped += found
        return dropped
