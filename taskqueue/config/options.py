"""Every option of the configuration: the one source of names, defaults and meanings.

`config.ini.example` and `docs/configuration.md` are held equal to these tables by tests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from taskqueue.config import parsers
from taskqueue.config.parsers import Parser

__all__ = ["AMQP", "DEFAULT", "TASKQUEUE", "WORKERS", "Option", "defaults", "is_reserved", "nearest"]

DEFAULT = "DEFAULT"

_RESERVED = ("taskqueue", "amqp", "store", "schedule", "web", "loggers", "handlers", "formatters")
_RESERVED_PREFIXES = ("logger_", "handler_", "formatter_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    default: as it would be written in the file.
    meaning: one or more sentences, with the unit.
    alias: another name for it.
    """

    name: str
    default: str
    parse: Parser
    meaning: str
    alias: str = ""


def _table(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


TASKQUEUE = _table(
    Option(
        name="url",
        default="",
        parse=parsers.url,
        meaning="Where the broker is, as a URL such as amqp://user:password@host:5672/vhost. "
        "Empty: as [amqp] says, which is amqp://localhost where [amqp] is empty, too.",
    ),
    Option(
        name="user",
        default="",
        parse=parsers.user,
        meaning="The user that dispatcher and carrier run as when they are started by root. "
        "Empty: taskqueue where that user exists, else root.",
    ),
    Option(
        name="worker_user",
        default="",
        parse=parsers.worker_user,
        meaning="The user of worker processes whose group names none, when started by root. "
        "Empty: taskqueue-worker where that user exists, else nobody. It can't be root.",
    ),
    Option(
        name="log_level",
        default="info",
        parse=parsers.choice("debug", "info", "warning", "error", "critical"),
        meaning="The least important messages that are logged: debug, info, warning, error or critical. "
        "Not used where the file has a section [loggers].",
    ),
    Option(
        name="max_body",
        default="16M",
        parse=parsers.size,
        meaning="Bytes, with K, M or G behind the number: a longer workitem becomes a dead letter.",
    ),
    Option(
        name="default_workitem_type",
        default="",
        parse=parsers.content_type,
        meaning="What a body without a content type is read as: the content type of a format that is installed, such "
        "as application/json. Empty: such a message becomes a dead letter unless it has the header worker_type.",
    ),
    Option(
        name="workitem_type_map",
        default="",
        parse=parsers.content_types,
        meaning="Content types that are read as another one, for which a format is installed: pairs, separated by "
        "commas, such as text/json = application/json, application/octet-stream = text/plain.",
    ),
    Option(
        name="max_types",
        default="1000",
        parse=parsers.number(1),
        meaning="How many types a dispatcher makes queues for in one run; workitems of others become dead letters.",
    ),
    Option(
        name="results_max_length",
        default="1000000",
        parse=parsers.number(1),
        meaning="How many results the queue named results keeps; beyond that the oldest are dropped.",
    ),
    Option(
        name="dead_retention",
        default="30d",
        parse=parsers.duration(1),
        meaning="How long a dead letter is kept: seconds, or a number with s, m, h or d behind it.",
    ),
    Option(
        name="history_retention",
        default="30d",
        parse=parsers.duration(3600),
        meaning="How long a store (postgresql, sqlite) keeps records of workitems that have ended, with their results: "
        "seconds, or a number with s, m, h or d behind it, from one hour. Worker types may say something else.",
    ),
    Option(
        name="history_max",
        default="0",
        parse=parsers.number(0),
        meaning="How many records a store keeps of each type's workitems that have ended; beyond that the oldest are "
        "dropped, by whole hours, so that there are never less. 0: any number. Worker types may say something else.",
    ),
    Option(
        name="statistics_retention",
        default="400d",
        parse=parsers.duration(86400),
        meaning="How long a store keeps statistics by type and hour: seconds, or a number with s, m, h or d behind it, "
        "from one day; never shorter than the records that they are made of.",
    ),
    Option(
        name="queue_type",
        default="quorum",
        parse=parsers.choice("quorum", "classic"),
        meaning="The type of queues that don't exist yet: quorum or classic. "
        "Only classic queues order by priority; only quorum queues have copies on several nodes of a cluster.",
    ),
)

AMQP = _table(
    Option(
        name="host", default="localhost", parse=parsers.text(1), meaning="The name or address of the broker's host."
    ),
    Option(
        name="port",
        default="",
        parse=lambda value: parsers.number(1, 65535)(value) if value else 0,
        meaning="The broker's port. Empty: 5672, with tls 5671.",
    ),
    Option(name="vhost", default="/", parse=parsers.text(1), meaning="The virtual host."),
    Option(name="user", default="guest", parse=parsers.text(1), meaning="The name to log in with."),
    Option(
        name="password",
        alias="passwd",
        default="guest",
        parse=parsers.text(0, 4096),
        meaning="The password to log in with, as it is: nothing is quoted or encoded. passwd means the same.",
    ),
    Option(
        name="password_file",
        default="",
        parse=parsers.text(0, 4096),
        meaning="A file with the password in one line, instead of password. A path that is not absolute begins at the "
        "directory of this file.",
    ),
    Option(name="tls", default="off", parse=parsers.switch, meaning="Whether the connection is encrypted: on or off."),
    Option(
        name="heartbeat",
        default="30s",
        parse=parsers.duration(1, 65535),
        meaning="How often the connection shows a sign of life: seconds, or a number with s, m or h behind it. "
        "It holds for a broker that url names, too.",
    ),
)

WORKERS = _table(
    Option(
        name="workers",
        default="1",
        parse=parsers.workers,
        meaning="How many processes run on this host; 0: none. Or the names of groups, separated by commas, "
        "each with its section: workers = a, b in [mytype] stands for [mytype_a] and [mytype_b].",
    ),
    Option(
        name="user",
        default="",
        parse=parsers.user,
        meaning="The user that the processes run as, which only root can change. Empty: worker_user of [taskqueue]. "
        "root runs the plugin's code with all rights.",
    ),
    Option(
        name="threads",
        default="1",
        parse=parsers.number(1, 1000),
        meaning="How many workitems each process runs at once, in threads: for work that waits. "
        "For a handle_task that is no `async def`.",
    ),
    Option(
        name="concurrency",
        default="1",
        parse=parsers.number(1, 10_000),
        meaning="How many workitems each process runs at once, in one event loop. "
        "For a handle_task that is an `async def`.",
    ),
    Option(
        name="prefetch",
        default="auto",
        parse=parsers.prefetch,
        meaning="How many workitems are held ready for the group's processes: a number, "
        "or auto, which follows their run time, and is nothing while no workitem comes to an end.",
    ),
    Option(
        name="retries",
        default="0",
        parse=parsers.number(0),
        meaning="How often a workitem is tried again after it failed or timed out.",
    ),
    Option(
        name="retry_delay",
        default="1s",
        parse=parsers.duration(),
        meaning="The wait before the first retry, doubled for each further one and shortened by a random part of up "
        "to a half: seconds, or a number with s, m, h or d behind it.",
    ),
    Option(
        name="retry_max_delay",
        default="1h",
        parse=parsers.duration(),
        meaning="The longest wait before a retry: seconds, or a number with s, m, h or d behind it.",
    ),
    Option(
        name="time_limit",
        default="0",
        parse=parsers.duration(),
        meaning="How long a workitem may run before its process is killed: seconds, or a number with s, m, h or d "
        "behind it; 0: for ever.",
    ),
    Option(
        name="soft_time_limit",
        default="0",
        parse=parsers.duration(),
        meaning="How long a workitem may run before SoftTimeLimitExceeded is raised in its handler: seconds, or a "
        "number with s, m, h or d behind it, less than time_limit; 0: for ever.",
    ),
    Option(
        name="memory_limit",
        default="0",
        parse=parsers.size_or_none,
        meaning="How much memory a process may use while a workitem runs before it is killed, which counts as a crash "
        "of what ran: bytes, with K, M or G behind the number; 0: any amount.",
    ),
    Option(
        name="max_memory",
        default="0",
        parse=parsers.size_or_none,
        meaning="A process that uses more memory than this when a workitem has ended is replaced by a new one: bytes, "
        "with K, M or G behind the number; 0: never.",
    ),
    Option(
        name="max_tasks",
        default="0",
        parse=parsers.number(0),
        meaning="A process that has had so many workitems is replaced by a new one; 0: never.",
    ),
    Option(
        name="stop_timeout",
        default="60s",
        parse=parsers.duration(),
        meaning="How long a stop waits for what runs before it is killed, to run again later: seconds, or a number "
        "with s, m, h or d behind it.",
    ),
    Option(
        name="cancel_timeout",
        default="10s",
        parse=parsers.duration(),
        meaning="How long a workitem that is cancelled while it runs may take to end: seconds, or a number with s, m, "
        "h or d behind it. After half of that its process gets SIGTERM, in the end SIGKILL.",
    ),
    Option(
        name="results_routing_key",
        default="results",
        parse=parsers.text(),
        meaning="The queue that results go to; empty: none.",
    ),
    Option(
        name="dead_letters",
        default="on",
        parse=parsers.switch,
        meaning="Whether a workitem that was given up is kept as a dead letter: on or off. "
        "Off: only its result says that it failed.",
    ),
    Option(
        name="history",
        default="full",
        parse=parsers.choice("full", "outcome", "off"),
        meaning="What a store (postgresql, sqlite) keeps of a workitem that has ended: full: every attempt, log and "
        "result; outcome: how it ended, and when; off: nothing.",
    ),
    Option(
        name="history_retention",
        default="",
        parse=lambda value: parsers.duration(3600)(value) if value else None,
        meaning="How long a store keeps records of this type's workitems that have ended: seconds, or a number with s, "
        "m, h or d behind it, from one hour. Empty: as [taskqueue] says. Of several groups, the longest counts.",
    ),
    Option(
        name="history_max",
        default="",
        parse=lambda value: parsers.number(0)(value) if value else None,
        meaning="How many records a store keeps of this type's workitems that have ended; beyond that the oldest are "
        "dropped, by whole hours. 0: any number. Empty: as [taskqueue] says. Of several groups, the largest counts.",
    ),
    Option(
        name="max_crashes",
        default="3",
        parse=parsers.number(1),
        meaning="A workitem that takes its process down that often is given up.",
    ),
    Option(
        name="environment",
        default="",
        parse=parsers.environment,
        meaning="Environment variables of the processes, as NAME=value pairs, quoted as in a shell. "
        "Nothing else is inherited from the daemon's environment.",
    ),
)


def defaults(table: dict[str, Option]) -> dict[str, object]:
    """The value of every option that a file does not mention."""
    return {name: option.parse(option.default) for name, option in table.items()}


def is_reserved(section: str) -> bool:
    """Whether `section` can't be a worker type's or a group's."""
    return section in (*_RESERVED, DEFAULT) or section.startswith(_RESERVED_PREFIXES)


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that was probably meant by `name`; empty: none."""
    plain = {_plain(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[found[0]] if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[-. ]", "_", name.lower())


def nearest_section(section: str, known: Iterable[str]) -> str:
    """The section that was probably meant by `section`; empty: none."""
    return nearest(section, (*_RESERVED, DEFAULT, *known))
