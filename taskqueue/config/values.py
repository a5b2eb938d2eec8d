"""What a configuration means, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS, defaults
from taskqueue.outcome import Rules
from taskqueue.upkeep import Keep, Keeping, longest
from taskqueue.workitem import worker_queue

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_URL",
    "EMBEDDED_FILE",
    "Config",
    "Group",
    "effective_user",
    "embedded_directory",
    "service_user",
]

DEFAULT_PATH = Path("/etc/taskqueue/config.ini")
DEFAULT_URL = "amqp://localhost"
EMBEDDED_FILE = "queue.db"

_DAEMON: dict[str, Any] = {**defaults(TASKQUEUE), "heartbeat": defaults(AMQP)["heartbeat"]}
_GROUP: dict[str, Any] = defaults(WORKERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Worker processes of one type and one user.

    name: the section of the group, or the name of the type where the type has no named groups.
    entry_point: `module:attribute` of the plugin; empty: not installed here.
    workers: how many processes.
    user: empty: not named (see `effective_user`).
    threads, concurrency: how many workitems each process runs at once, by the kind of its `handle_task`.
    prefetch: deliveries held; 0: as many as fit the measured run time.
    retry_delay, retry_max_delay, stop_timeout, cancel_timeout: seconds; the last is infinite for threads of a program.
    time_limit, soft_time_limit: seconds; 0: none.
    memory_limit, max_memory: bytes; 0: none.
    max_tasks: workitems; 0: any number.
    history_retention, history_max: seconds, and records of ended workitems (0: any number); None: as the daemon's.
    installation: which one of plugin and formats this is (`Installed.installation`); empty: not told.
    environment, settings: name and value, each name once.  `settings` are the options that are the plugin's own,
    sorted by name.  Both may hold secrets: show them through `mask_pairs` only.
    """

    name: str
    type: str
    entry_point: str = ""
    workers: int = _GROUP["workers"]
    user: str = _GROUP["user"]
    threads: int = _GROUP["threads"]
    concurrency: int = _GROUP["concurrency"]
    prefetch: int = _GROUP["prefetch"]
    retries: int = _GROUP["retries"]
    retry_delay: float = _GROUP["retry_delay"]
    retry_max_delay: float = _GROUP["retry_max_delay"]
    time_limit: float = _GROUP["time_limit"]
    soft_time_limit: float = _GROUP["soft_time_limit"]
    memory_limit: int = _GROUP["memory_limit"]
    max_memory: int = _GROUP["max_memory"]
    max_tasks: int = _GROUP["max_tasks"]
    stop_timeout: float = _GROUP["stop_timeout"]
    cancel_timeout: float = _GROUP["cancel_timeout"]
    results_routing_key: str = _GROUP["results_routing_key"]
    dead_letters: bool = _GROUP["dead_letters"]
    max_crashes: int = _GROUP["max_crashes"]
    history: Literal["full", "outcome", "off"] = _GROUP["history"]
    history_retention: float | None = _GROUP["history_retention"]
    history_max: int | None = _GROUP["history_max"]
    installation: str = ""
    environment: tuple[tuple[str, str], ...] = field(default=_GROUP["environment"], repr=False)
    settings: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def queue(self) -> str:
        """The queue that its workitems wait in."""
        return worker_queue(self.type)

    @property
    def slots(self) -> int:
        """How many workitems each process runs at once."""
        return max(self.threads, self.concurrency)

    @property
    def can_be_killed(self) -> bool:
        """Whether what goes on too long can be ended: not in threads of a program."""
        return self.cancel_timeout < float("inf")

    @property
    def label(self) -> str:
        """What its processes are called where people read it: `type`, or `type [group]`."""
        return self.type if self.name == self.type else f"{self.type} [{self.name.removeprefix(f'{self.type}_')}]"

    @property
    def rules(self) -> Rules:
        """What it says about the end of its workitems."""
        return Rules(
            results_routing_key=self.results_routing_key,
            dead_letters=self.dead_letters,
            max_crashes=self.max_crashes,
            history=self.history,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration, valid.

    url: where the broker is; holds the password: show it through `mask_url` only.
    user, worker_user: empty: not named (see `service_user`, `effective_user`).
    max_body: bytes.
    default_workitem_type: a content type; empty: none.
    workitem_type_map: what content types are read as, sorted.
    dead_retention, history_retention, statistics_retention, heartbeat: seconds.
    history_max: records of each type's ended workitems; 0: any number.
    groups: of the plugins that are installed and of the sections of others, sorted by type.
    warnings: sentences about what is odd but harms nothing else.
    logging: it has sections for `logging.config`.
    path, more: the file, and those of its conf.d, in their order.
    places: section and option -> `file:line`, of all that is in these files.
    """

    path: Path = DEFAULT_PATH
    more: tuple[Path, ...] = ()
    places: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)
    url: str = field(default=DEFAULT_URL, repr=False)
    user: str = _DAEMON["user"]
    worker_user: str = _DAEMON["worker_user"]
    log_level: str = _DAEMON["log_level"]
    max_body: int = _DAEMON["max_body"]
    default_workitem_type: str = _DAEMON["default_workitem_type"]
    workitem_type_map: tuple[tuple[str, str], ...] = _DAEMON["workitem_type_map"]
    max_types: int = _DAEMON["max_types"]
    results_max_length: int = _DAEMON["results_max_length"]
    dead_retention: float = _DAEMON["dead_retention"]
    history_retention: float = _DAEMON["history_retention"]
    history_max: int = _DAEMON["history_max"]
    statistics_retention: float = _DAEMON["statistics_retention"]
    queue_type: str = _DAEMON["queue_type"]
    heartbeat: float = _DAEMON["heartbeat"]
    groups: tuple[Group, ...] = ()
    warnings: tuple[str, ...] = ()
    logging: bool = False

    @property
    def keeping(self) -> Keeping:
        """How long a store is to keep what has ended."""
        default = Keep(self.history_retention, self.history_max)
        wanted: dict[str, list[Keep]] = {}
        for group in self.groups:
            age = default.age if group.history_retention is None else group.history_retention
            most = default.most if group.history_max is None else group.history_max
            wanted.setdefault(group.type, []).append(Keep(age, most))
        types = {type: longest(keeps) for type, keeps in wanted.items()}
        return Keeping(default=default, types=types, statistics=self.statistics_retention)

    def place(self, option: str, *sections: str) -> str:
        """Where `option` is, in the first of `sections` that has it: `file:line`; where none has it, the file."""
        return next((self.places[name, option] for name in sections if (name, option) in self.places), str(self.path))


def effective_user(group: Group, config: Config, *, root: bool, exists: Callable[[str], bool]) -> str:
    """The user that processes of `group` run as; empty: the one that runs the daemon.

    root: whether the daemon runs as root.  exists: whether a user of that name exists on this host.
    """
    if group.user:
        return group.user
    if not root:
        return ""
    return config.worker_user or ("taskqueue-worker" if exists("taskqueue-worker") else "nobody")


def embedded_directory(environment: Mapping[str, str], *, root: bool) -> Path:
    """Where the embedded broker's file is, which is used where there is no configuration.

    That of root is the host's; other users have one each, as the XDG base directory specification says.
    """
    if root:
        return Path("/var/lib/taskqueue")
    state = environment.get("XDG_STATE_HOME", "")
    home = Path(environment.get("HOME") or "~").expanduser()
    return (Path(state) if state.startswith("/") else home / ".local" / "state") / "taskqueue"


def service_user(config: Config, *, root: bool, exists: Callable[[str], bool]) -> str:
    """The user that dispatcher and carrier run as; empty: the one that runs the daemon."""
    if not root:
        return ""
    return config.user or ("taskqueue" if exists("taskqueue") else "")
