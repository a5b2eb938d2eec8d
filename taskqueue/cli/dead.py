"""`taskqueue dead list | show | requeue | discard`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

from taskqueue.broker import DeadLetters, connect
from taskqueue.cli.letters import plain, row, table, text, whole
from taskqueue.cli.replay import end_all
from taskqueue.clock import SYSTEM
from taskqueue.config import load
from taskqueue.config.parsers import duration
from taskqueue.dead import Selection, requeued
from taskqueue.dispatcher import broker_options
from taskqueue.outcome import Done, Outcome, Reason
from taskqueue.workitem import Workitem

__all__ = ["add_parser"]

Command = Callable[[DeadLetters, argparse.Namespace, Selection], Coroutine[Any, Any, int]]
NOT_DONE = 1  # exit status


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add the commands to a program's commands."""
    dead = subparsers.add_parser(
        "dead", help="dead letters: look at them, requeue or discard them", description="What to do with dead letters."
    )
    commands = dead.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="list them", description="List dead letters, first come first.")
    show = commands.add_parser("show", help="show all of some", description="Show all of some dead letters.")
    requeue = commands.add_parser(
        "requeue",
        help="give them another chance",
        description="Pass dead letters on to the queue of their type, with the same id and all counters anew. "
        "Malformed ones go to the dispatcher again.",
    )
    discard = commands.add_parser("discard", help="remove them", description="Remove dead letters for good.")
    show.add_argument("ids", metavar="ID", nargs="+", help="the id of a workitem")
    for parser in (requeue, discard):
        parser.add_argument("ids", metavar="ID", nargs="*", help="only these workitems")
        parser.add_argument("--all", action="store_true", help="all dead letters; there is no default")
        parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    requeue.add_argument("--rate", type=_rate, metavar="N", help="no more than N a second")
    for parser in (listing, requeue, discard):
        _add_filters(parser)
    runs: list[tuple[argparse.ArgumentParser, Command]] = [
        (listing, _list), (show, _show), (requeue, _requeue), (discard, _discard)
    ]  # fmt: skip
    for parser, command in runs:
        parser.set_defaults(run=_runner(parser, command), rate=None)
    return [parser for parser, _ in runs]


def _add_filters(parser: argparse.ArgumentParser) -> None:
    filters = parser.add_argument_group("which of them (all that is given must hold)")
    filters.add_argument("--type", action="append", default=[], metavar="TYPE", help="this worker type; repeatable")
    filters.add_argument(
        "--reason", action="append", default=[], choices=get_args(Reason), metavar="REASON",
        help=f"this reason; repeatable: {', '.join(get_args(Reason))}",
    )  # fmt: skip
    filters.add_argument("--older", type=_age, metavar="AGE", help="given up at least so long ago: 90s, 15m, 2h, 7d")
    filters.add_argument("--newer", type=_age, metavar="AGE", help="given up so long ago, or later")
    filters.add_argument("--limit", type=_limit, metavar="N", help="the first N of them only")


def _age(value: str) -> float:
    try:
        return duration()(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limit(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError("expected a number from 1")
    return int(value)


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not 0.1 <= rate <= 1e6:  # slower, and others who want to look would wait for too long
        raise argparse.ArgumentTypeError("expected a number from 0.1 to 1000000")
    return rate


def _runner(parser: argparse.ArgumentParser, command: Command) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        selection = _selection(args)
        if "all" in args:
            chosen = selection != Selection()
            if not chosen and not args.all:
                parser.error("name dead letters by ID or by filters, or all of them by --all")
            if chosen and args.all:
                parser.error("--all goes with neither ID nor filters")
        config = load(Path(args.config) if args.config else None, {}, url=args.url)
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

        async def work() -> int:
            view = connect(broker_options(config)).dead_letters()
            try:
                return await command(view, args, selection)
            finally:
                await view.close()

        return asyncio.run(work())

    return run


def _selection(args: argparse.Namespace) -> Selection:
    given = vars(args)
    return Selection(
        ids=frozenset(given.get("ids", ())),
        types=frozenset(given.get("type", ())),
        reasons=frozenset(given.get("reason", ())),
        older=given.get("older"),
        newer=given.get("newer"),
    )


async def _list(view: DeadLetters, args: argparse.Namespace, selection: Selection) -> int:
    now = SYSTEM.wall()
    rows: list[dict[str, Any]] = []  # and printed then: whoever reads them slowly must not hold the letters
    async with aclosing(view.look()) as looking:  # type: ignore[type-var]
        async for delivery in looking:
            if selection.picks(delivery.workitem, now):
                rows.append(row(delivery.workitem, now))
                if len(rows) == args.limit:
                    break
    await view.close()
    if args.json:
        for found in rows:
            print(json.dumps(found, default=plain))
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in table(rows, width):
            print(line)
    return 0


async def _show(view: DeadLetters, args: argparse.Namespace, selection: Selection) -> int:
    now = SYSTEM.wall()
    letters = [found.workitem async for found in view.look() if selection.picks(found.workitem, now)]
    await view.close()
    for number, letter in enumerate(letters):
        if args.json:
            print(json.dumps(whole(letter, now), default=plain))
        else:
            print("\n".join(("", *text(letter, now)) if number else text(letter, now)))
    return _missing(selection, {letter.id for letter in letters})


async def _requeue(view: DeadLetters, args: argparse.Namespace, selection: Selection) -> int:
    return await _end(view, args, selection, requeued)


async def _discard(view: DeadLetters, args: argparse.Namespace, selection: Selection) -> int:
    return await _end(view, args, selection, lambda _: Done(None))


async def _end(
    view: DeadLetters, args: argparse.Namespace, selection: Selection, decide: Callable[[Workitem], Outcome]
) -> int:
    now = SYSTEM.wall()
    report = _Report(args, decide)

    def picks(letter: Workitem) -> bool:
        return selection.picks(letter, now)

    try:
        if args.dry_run:
            async with aclosing(view.look()) as looking:  # type: ignore[type-var]
                async for delivery in looking:
                    if picks(delivery.workitem):
                        report.ended(delivery.workitem, False)
                        if report.count == args.limit:
                            break
        else:
            await end_all(view, picks, decide, limit=args.limit, rate=args.rate, found=report.found, ended=report.ended)
    finally:
        report.close()
    return max(_missing(selection, report.ids), NOT_DONE if report.lost and not args.dry_run else 0)


def _missing(selection: Selection, seen: set[str]) -> int:
    missing = sorted(selection.ids - seen)
    for id in missing:
        print(f"taskqueue: no such dead letter: {plain(id)}", file=sys.stderr)
    return NOT_DONE if missing else 0


class _Report:
    """Says what became of each letter, with a bar for people at a terminal.

    lost: how many did not count.
    """

    def __init__(self, args: argparse.Namespace, decide: Callable[[Workitem], Outcome]) -> None:
        self.count = self.lost = 0
        self.ids: set[str] = set()
        self._args = args
        self._decide = decide
        self._bar: Any = None

    def found(self, total: int) -> None:
        """There are so many to end."""
        if sys.stderr.isatty():
            from tqdm import tqdm  # only people at a terminal wait for it

            self._bar = tqdm(total=total, unit=" letters", file=sys.stderr)

    def ended(self, letter: Workitem, counted: bool) -> None:
        """`letter` was ended, or, where it is not `counted`, would be, or was not."""
        self.count += 1
        self.lost += not counted
        self.ids.add(letter.id)
        outcome = self._decide(letter)
        queue = None if isinstance(outcome, Done) else getattr(outcome, "queue", None)
        dry = self._args.dry_run
        if self._args.json:
            line = json.dumps({"id": letter.id, "queue": queue, "done": counted, "dry_run": dry})
        else:
            what = "discarded" if queue is None else f"requeued to {queue}"
            said = (
                f"would be {what}"
                if dry
                else what
                if counted
                else f"not {what}: somebody else has it, or the connection was lost"
            )
            line = f"{plain(letter.id) or '-'}  {said}"
        if self._bar is None:
            print(line)
        else:
            self._bar.write(line, file=sys.stdout)
            self._bar.update()

    def close(self) -> None:
        """No more will come."""
        if self._bar is not None:
            self._bar.close()
