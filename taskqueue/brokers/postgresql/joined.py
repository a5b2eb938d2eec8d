"""What is done inside a transaction of the caller's own, over the caller's own connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskqueue.broker import Ended
from taskqueue.brokers.postgresql.outgoing import puts
from taskqueue.brokers.postgresql.parcel import Parcel
from taskqueue.brokers.postgresql.place import Place
from taskqueue.brokers.postgresql.producer import addressed
from taskqueue.brokers.postgresql.rows import Row
from taskqueue.brokers.postgresql.session import DENIED, LEASE, MISSING
from taskqueue.clock import Clock
from taskqueue.errors import BrokerError, DeliveryLost
from taskqueue.joining import Connection, check_independent, join, sqlstate
from taskqueue.store import sender
from taskqueue.workitem import Workitem

__all__ = ["PostgreSQLJoined", "complete"]

_ELSEWHERE = "TQ003"


class PostgreSQLJoined:
    """The contract of taskqueue.broker.Joined.

    here: which database is meant; it is asked for when it is needed, with True where the answer turned out to be wrong.
    """

    def __init__(self, place: Place, clock: Clock, here: Callable[[bool], str], connection: Connection) -> None:
        self._place = place
        self._clock = clock
        self._here = here
        self._connection = connection

    def send(self, workitems: Sequence[Workitem], *, queue: str = "") -> list[str]:
        check_independent(workitems)
        items = addressed([workitem.named() for workitem in workitems], queue)
        here = self._here(False)
        for put in puts(items, sender(), self._clock.wall()):
            told = put.told if self._place.notify else []
            try:
                with _Understood(self._place.schema):
                    self._connection.execute(
                        f'SELECT "{self._place.schema}".put(%s, %s, %s, %s, %s, %s, %s, %s)',
                        (*put._replace(told=told), here),
                    )
            except BrokerError:
                self._here(True)
                raise
        return [workitem.id for _, workitem in items]


def complete(connection: object, ticket: Mapping[str, Any], ended: Ended, now: float) -> None:
    """See taskqueue.broker.complete."""
    row = Row(ticket["seq"], "", 0.0, ended.delivery.workitem, story=ticket["story"], number=ticket["number"])
    parcel = Parcel(now)
    parcel.end(row, ended)
    _, _, sends, bodies, lanes = parcel.texts()
    arguments = (
        ticket["carrier"], ticket["lease"], row.seq, row.stored_id, json.dumps(parcel.ends[0]), sends, bodies, lanes,
        sender(), sorted(parcel.told) if ticket["notify"] else [],
    )  # fmt: skip
    places = ", ".join(["%s"] * len(arguments))
    with _Understood(ticket["schema"]):
        join(connection).execute(f'SELECT "{ticket["schema"]}".complete({places})', arguments)


class _Understood:
    """Raises errors of ours for what is wrong with the connection; whatever else its driver raises goes through."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        state = sqlstate(error)
        if state == LEASE:
            raise DeliveryLost(_line(error)) from error
        if state == _ELSEWHERE:
            raise BrokerError(f"{_line(error)}: expected a connection to the same database") from error
        if state == DENIED:
            raise BrokerError(f"{_line(error)}: this role lacks the rights that docs/sending.md grants") from error
        if state in MISSING:
            raise BrokerError(
                f"the connection leads to a database without a usable schema {self._schema} ({_line(error)}): "
                "expected one to the same database"
            ) from error


def _line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
