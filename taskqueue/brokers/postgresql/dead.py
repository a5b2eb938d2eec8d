"""The dead letters of the database: looking is a SELECT, ending some is a statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import Parcel, array, unpack
from taskqueue.brokers.postgresql.session import Translated, connect_async
from taskqueue.clock import Clock
from taskqueue.outcome import effects
from taskqueue.workitem import DEAD_LETTERS

__all__ = ["PostgreSQLDeadLetters"]

CHUNK = 200  # letters that are read at a time


class PostgreSQLDeadLetters:
    """Nothing is held: whoever ends a letter first has it."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock
        self._lease = Lease()
        self._connection: psycopg.AsyncConnection | None = None
        self._using = asyncio.Lock()

    async def _call(self, call: str, *arguments: object) -> tuple[Any, ...]:
        async with self._using:
            if self._connection is None or self._connection.closed:
                self._connection = await connect_async(self._place)
            with Translated(self._place):
                text = f'SELECT * FROM "{self._place.schema}".{call}'.encode()
                found = await (await self._connection.execute(text, arguments, binary=True)).fetchone()
        return found or ()

    async def look(self) -> AsyncIterator[Delivery]:
        (there,) = await self._call("letters()")
        for start in range(0, len(there), CHUNK):
            found = await self._call("read_letters(%s)", array(there[start : start + CHUNK]))
            for number, _, _, letter in unpack(*found):
                yield Delivery(workitem=letter, queue=DEAD_LETTERS, tag=number, lease=self._lease)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        if self._lease.lost:
            return [False] * len(ended)
        parcel = Parcel(self._clock.wall())
        seen: set[int] = set()
        for item in ended:
            delivery = item.delivery
            if delivery.tag not in seen:
                seen.add(delivery.tag)
                todo = effects(delivery.workitem, item.outcome, item.rules, queue=DEAD_LETTERS, now=parcel.now)
                parcel.end(delivery.tag, delivery.workitem, DEAD_LETTERS, 0.0, item.outcome, item.rules, todo)
        ends, _, sends, bodies = parcel.texts()
        told = sorted(parcel.told) if self._place.notify else []
        (counted,) = await self._call("end_letters(%s, %s, %b, %s)", ends, sends, bodies, told)
        released = await self._call("read_letters(%s)", array(parcel.releases)) if parcel.releases else (None, None)
        there = {number for number, *_ in unpack(*released)}
        return [item.delivery.tag in counted or item.delivery.tag in there for item in ended]

    async def close(self) -> None:
        self._lease.lost = True
        async with self._using:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
