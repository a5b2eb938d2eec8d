"""The contract between the one loop and the places where workitems wait.

A broker is opened by URL (`connect`).  The sending side is plain calls, from any thread; the receiving side is
asynchronous, one `Consumer` per queue.  Every implementation passes `taskqueue.testing.BrokerContract`.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from taskqueue.depending import Input
from taskqueue.errors import BrokerError
from taskqueue.outcome import Outcome, Rules
from taskqueue.record import Progress, Run
from taskqueue.store import Store
from taskqueue.workitem import Workitem

__all__ = [
    "Broker",
    "Capabilities",
    "Consumer",
    "DeadLetters",
    "Delivery",
    "Ended",
    "Input",
    "Joined",
    "Lease",
    "Options",
    "Producer",
    "Underway",
    "complete",
    "connect",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to reach and set up a broker.  Brokers ignore what does not concern them.

    url: with its password, and so never logged.
    heartbeat: seconds between signs of life that are asked for.
    queue_type: `quorum` or `classic`, for queues that don't exist yet.
    results_queue: the default results queue, declared bounded by `results_max_length` (oldest dropped).
    dead_retention: seconds that a dead letter is kept.
    """

    url: str = field(repr=False)
    heartbeat: float = 30.0
    queue_type: str = "quorum"
    results_queue: str = "results"
    results_max_length: int = 1_000_000
    dead_retention: float = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a broker does beyond the contract; the table of DESIGN section 1 in code."""

    several_hosts: bool = True
    several_programs: bool = True
    priorities: bool = False
    store: bool = False
    transactions: bool = False


class Lease:
    """What deliveries hold their workitems by; shared by all deliveries that are lost together.

    `lost` turns True once, when somebody else may have the workitems.
    """

    __slots__ = ("lost",)

    def __init__(self) -> None:
        self.lost = False


class Delivery(NamedTuple):
    """One workitem, lent: equal to nothing but itself.  `tag` is the broker's own name for it.

    inputs: how those have ended that it depends on, in the order of `Workitem.after`.
    """

    workitem: Workitem
    queue: str
    tag: Any
    lease: Lease
    redelivered: bool = False
    inputs: tuple[Input, ...] = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Ended(NamedTuple):
    """A delivery, what became of it, the rules of the group that had it; and, for a store, how it ran.

    completing: its handler may have ended it in a transaction of its own (`complete`); then it counts as ended by that,
    and otherwise this outcome is its end.
    """

    delivery: Delivery
    outcome: Outcome
    rules: Rules = Rules()
    run: Run | None = None
    log: tuple[str, ...] = ()
    completing: bool = False


class Producer(Protocol):
    """The end of a broker that takes workitems.  May be used from any thread."""

    def send(
        self, workitems: Sequence[Workitem], *, queue: str = "", reply: bool = False, unique: bool = False
    ) -> list[str]:
        """Store `workitems` and return their ids, in order.

        queue: where to; empty: the queue of each workitem's type.  A queue that does not exist is made.
        reply: their results come back through `next_reply` of this producer.
        unique: none of their ids may be that of a workitem which has not ended.

        One that depends on others (`after`) is lent once all of these have ended, in whatever way; what has ended
        before counts at once.  With the header `on_error` = `fail`, the default, it ends `failed` as soon as one of
        them ended otherwise than succeeded, or its result is not kept: without having run, and without a dead letter;
        with `pass` it runs in any case.

        Returns after the broker's word that all are stored.  Raises SendFailed with the ids of those that it
        did not take, BrokerUnavailable where it can't be reached (some may be stored; sending again is safe
        only for work that may run twice).  A store raises, and has stored nothing then: DuplicateTask for `unique`;
        UnknownTask where `after` has an id that never was sent, nor comes earlier in the same call, or is not kept any
        more.  Other brokers raise Unsupported for both.
        """

    def next_reply(self, *, timeout: float | None) -> Workitem | None:
        """Wait up to `timeout` seconds (None: for ever) for the next result; None where time ran out."""

    def close(self) -> None:
        """Let go of the broker.  May be called twice."""


class Joined(Protocol):
    """The end of a broker that takes workitems in a transaction of the caller's own."""

    def send(self, workitems: Sequence[Workitem], *, queue: str = "") -> list[str]:
        """Store `workitems` with that transaction, or not at all, and return their ids, in order.

        What the caller's driver raises goes through as it is; else as Producer.send.  Raises Unsupported for what
        depends on others.
        """


class Consumer(Protocol):
    """The end of a broker that lends workitems from one queue.

    At least once: a delivery is settled, or it is lent again.  Outages are waited out: every method goes on
    when the broker is back, with everything rebuilt.
    """

    async def receive(self, *, limit: int) -> list[Delivery]:
        """Wait until at least one workitem is due, then lend up to `limit`.

        Order: first sent, first lent; by priority where the queue has it.  Cancelling it loses nothing.  Raises
        BrokerError once the consumer is closed.
        """

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        """End deliveries: store what their outcomes imply (`taskqueue.outcome.effects`), then let them go.

        False where a delivery no longer counted: it was settled before, or somebody else has it now, and nothing of
        it was kept that the broker could still take back.  What would be lent again, and somebody wants no more, ends
        as cancelled instead.
        """

    def ticket(self, delivery: Delivery) -> dict[str, Any] | None:
        """What a worker process needs to end a delivery by `complete`; for JSON, and with no right to anything else.

        None where the broker has no transactions (`Capabilities.transactions`).
        """

    def resize(self, reserve: int) -> None:
        """How many deliveries may be lent at a time.  A broker that lends only on `receive` ignores it."""

    async def pause(self) -> None:
        """Lend nothing new until the next `receive`; what was lent and not received yet is given back.

        A `receive` that is waiting goes on to wait, and counts as the next one.
        """

    async def report(self, underway: Sequence[Underway]) -> Sequence[Delivery]:
        """Say what runs, about once a second; returns those of its deliveries that somebody wants no more.

        (See `Store.cancel`.)  Each of them every time, until it is settled; also those that don't run.  A broker that
        is no store ignores what runs, and returns nothing.
        """

    async def close(self) -> None:
        """Give back everything that is not settled.  May be called twice."""


@dataclass(frozen=True, slots=True)
class Underway:
    """A delivery that a worker process is running, and how far it says it is."""

    delivery: Delivery
    run: Run
    progress: Progress | None = None


class DeadLetters(Protocol):
    """The end of a broker that shows what was given up, and lets go of it letter by letter.

    Looking neither reorders nor loses anything, however it ends.  Nothing is waited out: any method may raise
    BrokerUnavailable, after which the same object may be used again.
    """

    def look(self) -> AsyncIterator[Delivery]:
        """Every dead letter that is there now, first come first.

        Take them without waiting in between, and keep only what you need: they may be many.  Each may be settled
        until the next `look` or `close`.  A broker that can show them to one at a time lets others wait meanwhile.
        """

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        """End dead letters as a consumer ends deliveries: what their outcomes imply is safe before they are gone.

        A release leaves it where it is.  False where somebody else was faster, or the broker is gone; then it is still
        there, or was ended twice.
        """

    async def close(self) -> None:
        """Let go of the broker.  May be called twice."""


class Broker(Protocol):
    """A place where workitems wait."""

    capabilities: Capabilities

    def producer(self, wanted: Callable[[str], bool] | None = None) -> Producer:
        """A new sending end.

        wanted: whether its user may still ask for the result of an id; called in any thread, and waits for nothing.  A
        broker in the program's own memory keeps those, whatever room they take.
        """

    def using(self, connection: object) -> Joined:
        """What sends in the transaction of `connection`, which is the caller's (see `taskqueue.joining`).

        Raises Unsupported where the broker can't, or does not know such a connection; BrokerError where the connection
        leads elsewhere, or has no transaction.
        """

    def consumer(self, queue: str, *, reserve: int) -> Consumer:
        """A new receiving end for `queue`, which is made where it does not exist.  Inside an event loop."""

    def dead_letters(self) -> DeadLetters:
        """A new view of the dead letters, to be closed by whoever asked for it.  Inside an event loop."""

    def watch(self, told: Callable[[str], None]) -> None:
        """Reach for the broker now, though nothing is consumed, and stay connected.  Inside an event loop.

        told: called in the event loop with each change: why it can't be reached, in one line without secrets; empty:
        it is reached.  The first call comes as soon as that is known.
        """

    def store(self) -> Store:
        """What knows every workitem, to be closed by whoever asked for it.  Raises Unsupported where nothing does."""

    def anew(self) -> Broker:
        """The same place, with connections of its own: for another event loop.  To be closed by whoever asked."""

    def apart(self) -> Options | None:
        """How a process of its own reaches the same place, where a carrier has to say now and then that it lives.

        In a program it is one then, for whatever holds the program up would keep it from that.  None: it need not be.
        """

    async def declare(self, queue: str) -> bool:
        """Make `queue` where it does not exist; True if it was made.  Raises BrokerError where it can't be."""

    async def exists(self, queue: str) -> bool:
        """Whether there is such a queue."""

    async def close(self) -> None:
        """Close all consumers of this broker, and their connections.  May be called twice."""


def complete(connection: object, ticket: Mapping[str, Any], ended: Ended, *, now: float) -> None:
    """End a delivery in the transaction of `connection`, which is the caller's: with it, or not at all.

    ticket: what its consumer gave for it.  ended: as it would be settled, with a delivery that has its workitem and no
    more.  now: POSIX seconds.

    Raises DeliveryLost where somebody else may have it; for the connection as `Broker.using`.
    """
    importlib.import_module(f"taskqueue.brokers.{ticket['broker']}").complete(connection, ticket, ended, now)


def connect(options: Options | str) -> Broker:
    """The broker for a URL.  Nothing is connected yet.

    Raises BrokerError for a URL scheme that there is no backend, or no driver, for.
    """
    options = Options(url=options) if isinstance(options, str) else options
    scheme = options.url.partition(":")[0]
    backends = {name: name for name in ("amqp", "memory", "postgresql", "sqlite")} | {"amqps": "amqp"}
    if scheme not in backends:
        raise BrokerError(f"no broker for URLs that begin with '{scheme}:'; there are {', '.join(sorted(backends))}")
    try:
        backend = importlib.import_module(f"taskqueue.brokers.{backends[scheme]}")
    except ImportError as error:
        raise BrokerError(f"'{scheme}:' needs a driver: {error}; docs/{backends[scheme]}.md says which") from None
    broker: Broker = backend.open_broker(options)
    return broker
