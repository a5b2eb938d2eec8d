"""One worker process, as the carrier sees it: what was handed over, what it said, which workitems it runs."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from taskqueue import formats
from taskqueue.broker import Delivery, Ended, Underway
from taskqueue.carrier.account import Account
from taskqueue.carrier.cancelling import Cancelling
from taskqueue.carrier.limits import Limits
from taskqueue.carrier.owner import Cut, Owner
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.carrier.shared import Shared
from taskqueue.carrier.verdicts import Verdict, after_answer, after_death, unwanted
from taskqueue.clock import Clock
from taskqueue.config import Group
from taskqueue.outcome import Cancelled, Crashed, Done, Outcome, Release
from taskqueue.process.handing import bodies, properties
from taskqueue.process.protocol import Frames, Kind
from taskqueue.process.wire import NONSENSE, Wire
from taskqueue.record import finite

__all__ = ["WorkerProcess"]

LOOK_EVERY = 0.01  # seconds, into the journal, while others wait behind the one that runs
START_WITHIN_PROGRAM = 2.0  # seconds, in threads of a program: it has other things to do, and may be held up


class WorkerProcess:
    """Hands over batches; keeps them in order until they have ended.

    slots: how many workitems run at once; more than that are handed over only where it is one, and wait behind it.
    retiring: its manager wants it to end.  recycling: its manager knows that it will be replaced.
    standby: it is ready, and gets nothing while the one that it replaces works.
    ends: some day it will be worn.
    last: monotonic seconds of the last hand-over.
    succeeded: of when the last one succeeded there; 0: it did not, or was not started in time.
    """

    def __init__(
        self, pid: int, group: Group, sock: socket.socket, hello: dict[str, Any], owner: Owner, clock: Clock
    ) -> None:
        self.pid = pid
        self.group = group
        self.rules = replace(group.rules, worker=f"{socket.gethostname()}:{pid}")
        self.slots = group.slots
        self.ends = bool(group.max_tasks or group.max_memory or group.memory_limit)
        self.is_ready = False
        self.retiring = False
        self.recycling = False
        self.standby = False
        self.last = self.succeeded = 0.0
        self._condemned: Mapping[int, Verdict] | None = None
        self._max_result: int = hello["max_result"]
        self.formats = formats.known(**{**hello["formats"], "installed": {}})  # no plugin code runs here
        self._owner = owner
        self._clock = clock
        self._numbers = 0
        self._ended = 0
        self._worked = False
        self._handed: dict[int, Delivery] = {}
        self._since: dict[int, float] = {}  # of those that have a slot; the oldest first
        self._unhurried = 0  # the first one for an idle process may be started at any time; in a program none
        self._start_by = 0.0
        self._unsure = False  # whether all the others were started in time
        self._stuck = False  # they were not, and it has said nothing since
        self._alone = False
        self._completes = False  # whether its handlers may end workitems by themselves
        self._completing: set[int] = set()  # those that they may have ended so
        self._cancelling = Cancelling(group.cancel_timeout)
        self._limits = Limits(group, pid)
        self._account = Account(pid, clock)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._shared = Shared(self.slots)
        self._early: set[int] = set()  # what is known from the journal to have ended, and will be told again
        self._wire = Wire(sock, self._heard, lambda reason: owner.mute(self, reason))
        self._wire.send(Kind.HELLO, {**hello, "rules": asdict(self.rules)}, files=(self._shared.file,))

    @property
    def load(self) -> int:
        """How many workitems it has."""
        return len(self._handed)

    @property
    def usable(self) -> bool:
        """Whether it may get work at all."""
        return (
            self.is_ready
            and not (self.retiring or self.standby or self._wire.ended or self.worn)
            and self._condemned is None
        )

    @property
    def state(self) -> str:
        """What it is, in a word."""
        if self.retiring or self.recycling:
            return "retiring" if self.retiring else "recycling"
        return "starting" if not self.is_ready else "standby" if self.standby else "ready"

    @property
    def is_stuck(self) -> bool:
        """Whether it did not start in time what it was handed over, and has said nothing since."""
        return self._stuck

    @property
    def left(self) -> int:
        """How many more workitems it may get before it has had the `max_tasks` of its group."""
        most = self.group.max_tasks
        return most - self._ended - len(self._handed) if most else sys.maxsize

    @property
    def worn(self) -> str:
        """Why it gets no more work and is replaced; empty: it is not."""
        if self.left <= 0:
            return f"max_tasks = {self.group.max_tasks}"
        return self._limits.worn

    def room(self, deep: int) -> int:
        """How many more workitems it can take now; `deep`: how many may be with one that runs them in turn."""
        load = len(self._handed)
        if self._stuck or self._alone:
            return 0
        if self.slots > 1:
            return min(self.slots - load, self.left)
        if self._limits.weighs:  # after each
            deep = 1
        if load > deep // 2 or (load and self._clock.monotonic() - self._oldest >= START_WITHIN):
            return 0
        return min(deep - load, self.left)

    @property
    def _oldest(self) -> float:
        return next(iter(self._since.values()))

    def hand_over(self, deliveries: Sequence[Delivery], *, alone: bool = False) -> None:
        """Give it work.  What does not come first must be started within START_WITHIN seconds, or not at all.

        Threads of a program must start all of it within START_WITHIN_PROGRAM seconds, or not at all.

        alone: give it nothing else until this has ended.
        """
        now = self._clock.monotonic()
        idle = not self._handed and self.group.can_be_killed
        items: list[Any] = []
        if idle:
            self._unhurried = self._numbers + 1
            self._limits.begin(now)
        for delivery in deliveries:
            self._numbers += 1
            self._handed[self._numbers] = delivery
            self._limits.add(self._numbers, delivery.workitem)
            if len(self._since) < self.slots:
                self._since[self._numbers] = now
            items.append((self._numbers, len(delivery.workitem.body), properties(delivery)))
        self.last = now
        self._alone = alone
        self._start_by = now + (START_WITHIN if self.group.can_be_killed else START_WITHIN_PROGRAM)
        self._unsure = len(self._handed) > 1 or not self.group.can_be_killed
        if self._completes:
            for delivery, (_, _, its) in zip(deliveries, items, strict=True):
                its["ticket"] = self._owner.ticket(self, delivery)
        meta = {"idle": idle, "start_by": self._start_by, "items": items}
        self._wire.send(Kind.WORK, meta, b"".join(bodies(deliveries)))
        self._watch()

    def _watch(self) -> None:
        """Look again when the next thing can be late.  One timer at a time: short tasks cost none each."""
        times = []
        if self._unsure:
            # Not to the instant: it reads its clock after it has set its mark.
            look_at = self._clock.monotonic() + LOOK_EVERY if self.group.can_be_killed else math.inf
            times.append(min(self._start_by + 0.001, look_at))
        if self._condemned is None:
            times += self._limits.look_at(self._since)
        if self._cancelling.look_at is not None:
            times.append(self._cancelling.look_at)
        if times and (self._timer is None or min(times) < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(min(times), self._look)

    def _look(self) -> None:
        self._timer = None
        if self._unsure:
            self._read_journal()
        late = self._overdue()
        if late:
            self._owner.unstarted(self, late)
        now = self._clock.monotonic()
        if self._condemned is None:
            self._check_limits(now)
        if (number := self._cancelling.due(now)) is not None:
            self.condemn({})
            self._note_work()
            self._owner.unwanted(self, number)
        self._watch()

    def _check_limits(self, now: float) -> None:
        late = self._limits.late(self._since, now)
        if late:
            self._note_work()
            what = f"time limit of {min(each.limit for each in late.values()):g} s"
            if self.group.can_be_killed or self._limits.are_left(late):
                self.condemn(late)
                self._owner.over_limit(self, what)
            else:
                self._limits.leave(late)
                self._wire.send(Kind.LEAVE, list(late))
                self._owner.left_alone(self, what, lambda: self._leave_soon(late))
        elif self._since and (why := self._limits.too_heavy(now)):
            self.condemn(dict.fromkeys(self.started(), Crashed(why)))
            self._owner.over_limit(self, why)

    def _leave_soon(self, numbers: Mapping[int, Verdict]) -> None:
        if not self._wire.ended:
            self._limits.leave_soon(numbers, self._clock.monotonic())
            self._watch()

    def _note_work(self) -> None:
        if not self._worked:
            self._worked = True
            self._owner.worked(self)

    def condemn(self, verdicts: Mapping[int, Verdict]) -> None:
        """It is going to be killed: what becomes of which workitems if they still run then.

        The others that run then are innocent, and released.
        """
        if self._condemned is None:
            self._condemned = verdicts

    def cancel(self, delivery: Delivery) -> None:
        """If it runs here: tell its handler that somebody wants it no more, and see to it that it ends.

        What has not been started is left alone: it starts soon, or comes back.  May be called again.
        """
        for slot, number in enumerate(self._shared.started()):
            if self._handed.get(number) is delivery and number not in self._cancelling:
                self._shared.cancel(slot, number)
                self._wire.send(Kind.CANCEL, [number])  # for those whose event loop reads while handlers run
                self._cancelling.begin(number, self._clock.monotonic())
                self._watch()

    def _is_late(self) -> bool:
        return self._unsure and self._clock.monotonic() >= self._start_by

    def _overdue(self) -> list[Delivery]:
        """Take back what should have been started by now and was not, and may not be started any more.

        The marks first, and what it has said then: of what was started in time and is not marked any more, it has
        said the end before.
        """
        if not self._is_late():
            return []
        started = self.started()
        self._read()
        if not self._is_late():  # it has got something new meanwhile
            return []
        self._unsure = False
        late = self._handed.keys() - started - {self._unhurried}
        self._stuck = bool(late)
        if late:
            self.succeeded = 0.0
        return [self._take(number) for number in sorted(late)]

    def _take(self, number: int) -> Delivery:
        """It is not handed over any more; the next one has its slot."""
        delivery = self._handed.pop(number)
        self._since.pop(number, None)
        self._limits.forget(number)
        if not self._handed:
            self._alone = False
        elif not self._since:  # only where one has to wait for the other is there more than there are slots
            self._since[next(iter(self._handed))] = self._clock.monotonic()
        return delivery

    def started(self) -> set[int]:
        """The hand-overs that it has started and that have not ended, by the marks in the shared memory."""
        return self._handed.keys() & self._shared.started()

    def _ran_for(self, number: int) -> float:
        """The seconds since it was started, as near as that is known."""
        return self._clock.monotonic() - self._since.get(number, self.last)

    def underway(self, least: float) -> list[Underway]:
        """What has been running for `least` seconds or longer."""
        found = []
        for number in sorted(self.started() - self._completing):
            seconds = self._ran_for(number)
            if seconds >= least:
                run, progress = self._account.running(seconds), self._account.progress(number)
                found.append(Underway(self._handed[number], run, progress))
        return found

    def stop(self) -> None:
        """Let it end in good order after what it has."""
        self._wire.send(Kind.STOP)
        self._owner.stopping(self)

    def bury(self) -> tuple[list[Cut], list[Delivery]]:
        """It is dead: the workitems that it was running, and the others.

        Everything that it wrote is read first: what it reported has ended, and is not blamed.
        """
        self._read()
        self._wire.close("dead")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        running = []
        for number in sorted(self.started()):
            verdict = None if self._condemned is None else self._condemned.get(number, Release())
            if number in self._cancelling:
                verdict = Cancelled()
            run, log = self._account.ran(self._ran_for(number)), self._account.take(number)
            running.append(Cut(self._handed.pop(number), verdict, run, log, number in self._completing))
        rest = list(self._handed.values())
        self._handed.clear()
        self._since.clear()
        self._shared.close()
        self._limits.close()
        return running, rest

    def _read(self) -> None:
        """Take up everything that it has said.

        The journal first: what is not in it any more is in the socket.
        """
        self._read_journal()
        self._wire.read()

    def _read_journal(self) -> None:
        for frame in self._shared.unsent():
            try:
                for kind, meta, payload in Frames().feed(frame):
                    if kind == Kind.ENDED and (number := meta[0]) in self._handed:
                        self._heard(kind, meta, payload)
                        self._early.add(number)
            except NONSENSE:
                return  # a process that lives says it again, and is killed for it

    def _heard(self, kind: Kind, meta: Any, payload: bytes) -> None:
        match kind:
            case Kind.ENDED:
                number, nanoseconds, cpu, memory, *answer = meta
                if number in self._early:
                    self._early.discard(number)
                    return
                seconds, spent, used = _seconds(nanoseconds), None if cpu is None else _seconds(cpu), int(memory)
                # Taken away only afterwards: with an answer that is none, it still counts as running.
                outcome = self._judged(number, answer, payload)
                delivery = self._take(number)
                if number in self._cancelling:
                    self._cancelling.over(number)
                    outcome = unwanted(outcome)
                self._ended += 1
                self.succeeded = self._clock.monotonic() if isinstance(outcome, Done) else 0.0
                self._stuck = False
                self._limits.weigh()
                run = self._account.ran(seconds, spent, used)
                ended = Ended(delivery, outcome, self.rules, run, self._account.take(number))
                if number in self._completing:
                    self._completing.discard(number)
                    ended = ended._replace(completing=True)
                self._owner.ended(self, ended, seconds)
                self._note_work()
            case Kind.UNSTARTED:
                # What was taken back already is not here any more.
                late = [self._take(number) for number in meta if number in self._handed]
                self._stuck = False
                self.succeeded = 0.0
                self._owner.unstarted(self, late)
            case Kind.COMPLETING:
                self._completing.update(number for number in meta if number in self._handed)
            case Kind.READY:
                self._completes = meta == "completes"
                self.is_ready = True
                self._account.ready()
                self._owner.ready(self)
            case Kind.BROKEN:
                self._owner.broken(self, str(meta[0]), str(meta[1]))
            case Kind.LOG:
                number, name, level, text = int(meta[0]), str(meta[1]), int(meta[2]), str(meta[3])
                if number in self._handed and self.rules.history == "full":
                    self._account.logged(number, text)
                self._owner.said(self, name, level, text)
            case Kind.PROGRESS:
                number, done, total, note = meta
                if number in self._handed:
                    self._account.progressed(number, finite(done), None if total is None else finite(total), str(note))
            case _:
                raise ValueError(f"a worker process does not say {kind.name}")

    def _judged(self, number: int, answer: Sequence[Any], payload: bytes) -> Outcome:
        if len(payload) > self._max_result:
            raise ValueError(f"a result of {len(payload)} bytes")
        workitem, jitter = self._handed[number].workitem, random.random()
        outcome = after_answer(workitem, self.group, answer, payload, jitter=jitter, known=self.formats)
        if isinstance(outcome, Done) or not self._limits.are_left([number]):
            return outcome
        return after_death(workitem, self.group, "", self._limits.time(number), jitter=jitter, known=self.formats)


def _seconds(nanoseconds: Any) -> float:
    if not 0 <= nanoseconds < 1e18:
        raise ValueError(f"a time of {nanoseconds} ns")
    return float(nanoseconds / 1e9)
