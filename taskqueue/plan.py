"""Which worker processes to start and which to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from taskqueue.config import Config, Group
from taskqueue.retry import backoff

__all__ = ["Action", "Child", "Deaths", "Start", "Stop", "died", "is_failing", "plan", "process_of", "want"]

QUICK = 10.0  # seconds; a process that dies sooner after its start, and brought nothing to its end, did not really run
FIRST_DELAY = 0.1  # seconds, before the second replacement in a row; the first comes at once
LONGEST_DELAY = 60.0  # seconds
FAILING = 3  # quick deaths in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A worker process that has not been reaped yet.

    started: monotonic seconds.
    stopping: it was told to stop.
    recycling: its carrier will end it soon, and wants its successor to be ready by then.
    """

    pid: int
    group: Group
    started: float
    stopping: bool = False
    recycling: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process of `group` at `at`, monotonic seconds.

    Where that is still to come, do nothing yet and plan again then.
    """

    group: Group
    at: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Let the process finish what it runs, and end."""

    pid: int


Action = Start | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """How the processes of a group keep dying soon after their start, without having done anything.

    count: the rounds of replacements in a row that did.  Processes that were there together and die together, such
    as all eight of a group whose plugin does not import, are one round.
    last: monotonic seconds of the first death of the latest round.
    jitter: 0 to 1, drawn once per round, so that planning again gives the same answer.
    """

    count: int = 0
    last: float = 0.0
    jitter: float = 1.0

    @property
    def restart(self) -> float:
        """When the next process of the group may be started, monotonic seconds."""
        if self.count < 2:
            return self.last
        return self.last + backoff(self.count - 2, base=FIRST_DELAY, maximum=LONGEST_DELAY, jitter=self.jitter)

    @property
    def over(self) -> float:
        """When the latest replacements will have been up for long enough, monotonic seconds."""
        return self.restart + QUICK if self.count else self.last


def died(deaths: Deaths | None, *, started: float, now: float, jitter: float, worked: bool = False) -> Deaths:
    """What is known of a group after one of its processes, started at `started`, died at `now` unasked.

    deaths: what was known before; None: nothing.
    jitter: a random number from 0 to 1.
    worked: it brought a workitem to its end; so its replacement will do some work, too, and need not wait.
    """
    if worked or now - started >= QUICK:
        return Deaths(count=0, last=now)
    if deaths is None or deaths.count == 0 or started >= deaths.over:
        return Deaths(count=1, last=now, jitter=jitter)
    if started < deaths.last:  # it was there before that round's first death: not a replacement that failed
        return deaths
    return Deaths(count=deaths.count + 1, last=now, jitter=jitter)


def is_failing(deaths: Deaths | None, *, now: float) -> bool:
    """Whether the group can't stay up: its last replacements died soon, and none has stayed since."""
    return deaths is not None and deaths.count >= FAILING and now < deaths.over


def process_of(group: Group) -> Group:
    """All of `group` that a process is started for: neither how many there are of it nor how long records are kept."""
    return replace(group, workers=0, history_retention=None, history_max=None)


def want(config: Config) -> Counter[Group]:
    """How many processes of each group there should be; groups without a plugin on this host have none."""
    return Counter({group: group.workers for group in config.groups if group.entry_point and group.workers})


def plan(
    children: Sequence[Child], *, want: Mapping[Group, int], deaths: Mapping[Group, Deaths], now: float
) -> list[Action]:
    """Decide how to get from `children` to the processes that are wanted.

    A process whose group is wanted unchanged, as far as `process_of` says, is left alone; others are stopped.
    Of too many the youngest are stopped.  A group never has more processes than wanted: a new one is started
    when an old one of the same name has ended, not when it is told to.  One that is recycled does not count: its
    successor is started ahead, and gets its first workitem when it may work in its place.

    deaths: of groups whose processes died; the number of processes in the keys does not matter.
    now: monotonic seconds.  No I/O: the same arguments give the same actions.
    """
    wanted = {process_of(group): (group, count) for group, count in want.items()}
    known = {process_of(group): value for group, value in deaths.items()}
    running: dict[Group, list[Child]] = {process: [] for process in wanted}
    ending: Counter[str] = Counter()
    stops: list[Action] = []

    def stop(child: Child) -> None:
        ending[child.group.name] += 1
        if not child.stopping:
            stops.append(Stop(child.pid))

    for child in sorted(children, key=lambda child: (child.started, child.pid)):
        place = running.get(process_of(child.group))
        if child.recycling and not child.stopping and place is not None:
            continue
        if child.stopping or place is None or len(place) >= wanted[process_of(child.group)][1]:
            stop(child)
        else:
            place.append(child)
    starts: list[Action] = []
    for process, (group, count) in wanted.items():
        missing = count - len(running[process]) - ending[group.name]
        at = max(now, known[process].restart) if process in known else now
        starts += [Start(group, at)] * missing
    return stops + starts
