"""The dead letters of the database: looking is a SELECT, ending some is a statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg

from taskqueue.broker import Delivery, Ended, Lease
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.rows import Row, unpack
from taskqueue.brokers.postgresql.session import Translated, connect_async
from taskqueue.clock import Clock
from taskqueue.store import sender
from taskqueue.workitem import DEAD_LETTERS, Workitem

__all__ = ["PostgreSQLDeadLetters"]

CHUNK = 200  # letters that are read at a time
_NOTHING = Workitem(body=b"")


class PostgreSQLDeadLetters:
    """Nothing is held: whoever ends a letter first has it."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock
        self._lease = Lease()
        self._connection: psycopg.AsyncConnection | None = None
        self._sender = sender()
        self._using = asyncio.Lock()
        self._rows: dict[int, Row] = {}  # by the tags of what was shown; without their bodies

    async def _call(self, call: str, *arguments: object) -> tuple[Any, ...]:
        async with self._using:
            if self._connection is None or self._connection.closed:
                self._connection = await connect_async(self._place)
            with Translated(self._place):
                text = f'SELECT * FROM "{self._place.schema}".{call}'.encode()
                found = await (await self._connection.execute(text, arguments, binary=True)).fetchone()
        return found or ()

    async def look(self) -> AsyncIterator[Delivery]:
        self._rows.clear()
        (there,) = await self._call("letters()")
        for start in range(0, len(there), CHUNK):
            for row in unpack(*await self._call("read_letters(%s::tid[])", there[start : start + CHUNK])):
                self._rows[row.seq] = row._replace(workitem=_NOTHING)
                yield Delivery(workitem=row.workitem, queue=DEAD_LETTERS, tag=row.seq, lease=self._lease)

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        if self._lease.lost:
            return [False] * len(ended)
        parcel = Parcel(self._clock.wall())
        rows: dict[int, Row] = {}
        for item in ended:
            tag, letter = item.delivery.tag, item.delivery.workitem
            if tag not in rows:
                rows[tag] = self._rows[tag]._replace(workitem=letter)
                parcel.end(rows[tag], item)
        ends, releases, sends, bodies, lanes = parcel.texts()
        told = sorted(parcel.told) if self._place.notify else []
        (counted,) = await self._call(
            "end_letters(%s, %s, %b, %s, %s, %s)", ends, sends, bodies, lanes, self._sender, told
        )
        there = set(counted)
        if releases:  # they stay where they are, if they are there
            kept = [row.place for row in rows.values()]
            there |= {row.seq for row in unpack(*await self._call("read_letters(%s::tid[])", kept))}
        return [item.delivery.tag in there for item in ended]

    async def close(self) -> None:
        self._lease.lost = True
        async with self._using:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
