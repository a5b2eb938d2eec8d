"""`taskqueue maintain` and `taskqueue stats`: a store's chores, done at once, and what it knows of hours."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskqueue.broker import connect
from taskqueue.cli.letters import plain
from taskqueue.clock import SYSTEM
from taskqueue.config import Config, load
from taskqueue.config.parsers import duration
from taskqueue.dispatcher import broker_options
from taskqueue.lifecycle import ENDED
from taskqueue.statistics import Histogram, Tally, percentile, together
from taskqueue.store import Store
from taskqueue.upkeep import Keeping, Round

__all__ = ["add_parser"]

PERCENTILES = (50, 90, 99)
_DONE = {  # what a round did, in words: one, and many
    "carriers": ("dead carrier: what it had is lent again", "dead carriers: what they had is lent again"),
    "results": ("result dropped", "results dropped"),
    "dead_letters": ("dead letter dropped", "dead letters dropped"),
    "records": ("record of ended work dropped", "records of ended work dropped"),
    "mended": ("workitem found that waited for what had ended", "workitems found that waited for what had ended"),
    "days": ("whole day dropped", "whole days dropped"),
    "made": ("day's partition made", "days' partitions made"),
    "hours": ("hour put into the statistics", "hours put into the statistics"),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands to a program's commands."""
    maintain = subparsers.add_parser(
        "maintain",
        help="do what daemons do now and then, at once: drop what is over, make statistics",
        description="Do at once what the worker managers of all hosts do now and then: drop what need not be kept any "
        "longer, have what dead carriers had lent again, make statistics. How long records of a type are kept is as "
        "the worker managers that run it have said. Needs a broker that keeps records: postgresql, sqlite.",
    )
    maintain.set_defaults(run=_maintain)
    stats = subparsers.add_parser(
        "stats",
        help="show what ended, by type: how many, how long it waited and ran",
        description="Show how many workitems ended, by type and outcome, and how long they waited for their first "
        "start (a delay that was asked for included) and how long their last attempt ran: percentiles, known to 5 %. "
        "Needs a broker that keeps records: postgresql, sqlite.",
    )
    stats.add_argument("--type", default="", metavar="TYPE", help="of this worker type")
    stats.add_argument(
        "--since", type=_age, default=86400.0, metavar="AGE",
        help="from the hour on that was so long ago: 90m, 12h, 7d (default: 1d)",
    )  # fmt: skip
    stats.add_argument("--hourly", action="store_true", help="each hour by itself")
    stats.set_defaults(run=_stats)
    return [maintain, stats]


def _age(value: str) -> float:
    try:
        return duration()(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _opened(args: argparse.Namespace) -> tuple[Config, Store]:
    config = load(Path(args.config) if args.config else None, {}, url=args.url)
    return config, connect(broker_options(config)).store()


def _maintain(args: argparse.Namespace) -> int:
    config, store = _opened(args)
    with closing(store):
        done = store.maintain(Keeping(default=config.keeping.default, statistics=config.statistics_retention))
    if args.json:
        print(json.dumps(asdict(done)))
        return 0
    for line in _said(done):
        print(line)
    return 0


def _said(done: Round) -> Iterator[str]:
    if done.busy:
        yield "somebody else is at it, and does the same"
    elif done.idle:
        yield "there was nothing to do"
    for name, (one, many) in _DONE.items():
        count = getattr(done, name)
        if count:
            yield f"{count} {one if count == 1 else many}"


def _stats(args: argparse.Namespace) -> int:
    _, store = _opened(args)
    with closing(store):
        tallies = store.statistics(type=args.type, since=SYSTEM.wall() - args.since)
    rows = [_row(tally, hourly=args.hourly) for tally in together(tallies, hourly=args.hourly)]
    lines = map(json.dumps, rows) if args.json else _table(rows)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for line in lines:
        print(line)
    return 0


def _row(tally: Tally, *, hourly: bool) -> dict[str, Any]:
    return {
        "type": tally.type,
        **({"hour": tally.hour} if hourly else {}),
        **{str(state): count for state, count in zip(ENDED, tally.counts, strict=True)},
        "waited": _percentiles(tally.waited),
        "ran": _percentiles(tally.ran),
    }


def _percentiles(histogram: Histogram) -> dict[str, float | None]:
    """In seconds, to two places that mean something."""
    found = {f"p{n}": percentile(histogram, n / 100) for n in PERCENTILES}
    return {name: None if value is None else float(f"{value:.2g}") for name, value in found.items()}


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines for people: words to the left, numbers to the right."""
    words = ["type", *(["hour"] if rows and "hour" in rows[0] else [])]
    times = [(name, f"p{n}") for name in ("waited", "ran") for n in PERCENTILES]
    header = [*words, *ENDED, *(" ".join(time) for time in times)]
    lines = [[name.upper() for name in header]]
    for row in rows:
        moment = [f"{datetime.fromtimestamp(row['hour'], UTC):%Y-%m-%d %H:00}"] if "hour" in row else []
        counts = [str(row[state]) for state in ENDED]
        lines.append([plain(row["type"] or "-"), *moment, *counts, *(_short(row[name][p]) for name, p in times)])
    widths = [max(len(line[n]) for line in lines) for n in range(len(header))]
    for line in lines:
        cells = list(zip(line, widths, strict=True))
        left = [cell.ljust(wide) for cell, wide in cells[: len(words)]]
        yield "  ".join([*left, *(cell.rjust(wide) for cell, wide in cells[len(words) :])])


def _short(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} us"
