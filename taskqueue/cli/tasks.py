"""`taskqueue tasks`, `show` and `cancel`: what a store knows of workitems, and which of them are wanted no more."""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskqueue.broker import connect
from taskqueue.cli.letters import plain, table
from taskqueue.clock import SYSTEM
from taskqueue.config import load
from taskqueue.dispatcher import broker_options
from taskqueue.lifecycle import ENDED, State
from taskqueue.outcome import Payload
from taskqueue.record import Attempt, Record
from taskqueue.store import Store

__all__ = ["add_parser"]

COLUMNS = ("id", "type", "task", "state", "reference", "age", "attempts", "error")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add these commands to a program's commands."""
    tasks = subparsers.add_parser(
        "tasks",
        help="list workitems: what ran, runs and will run",
        description="List workitems, the latest first.  Needs a broker that keeps records: postgresql, sqlite.",
    )
    tasks.add_argument(
        "--reference", default="", metavar="REFERENCE", help="about this business object, such as order:4711"
    )
    tasks.add_argument("--type", default="", metavar="TYPE", help="of this worker type")
    tasks.add_argument(
        "--state", action="append", default=[], type=_state, metavar="STATE", dest="states",
        help=f"in this state; may be given several times ({', '.join(State)})",
    )  # fmt: skip
    tasks.add_argument("--limit", type=_limit, default=100, metavar="N", help="no more than N (default: 100)")
    tasks.set_defaults(run=_tasks)
    show = subparsers.add_parser(
        "show",
        help="show all of a workitem: attempts, errors, log, result",
        description="Show all that is known of workitems.  The exit status is 1 where one is unknown.",
    )
    show.add_argument("ids", metavar="ID", nargs="+", help="the id of a workitem")
    show.set_defaults(run=_show)
    cancel = subparsers.add_parser(
        "cancel",
        help="end workitems that nobody wants any more, also while they run",
        description="End workitems: at once where they wait; where they run, their handlers are told, and after "
        "`cancel_timeout` their processes are killed.  None of them is tried again.  The exit status is 1 where one "
        "has ended before, or is unknown.",
    )
    cancel.add_argument("ids", metavar="ID", nargs="+", help="the id of a workitem")
    cancel.set_defaults(run=_cancel)
    return [tasks, show, cancel]


def _state(text: str) -> State:
    try:
        return State(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no state; there are {', '.join(State)}") from None


def _limit(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("expected a number, not below 1")
    return int(text)


def _store(args: argparse.Namespace) -> Store:
    config = load(Path(args.config) if args.config else None, {}, url=args.url)
    return connect(broker_options(config)).store()


def _tasks(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        records = store.history(reference=args.reference, type=args.type, states=args.states, limit=args.limit)
    now = SYSTEM.wall()
    rows = [_row(record, now) for record in records]
    if args.json:
        for row in rows:
            print(json.dumps(row))
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(rows, width, COLUMNS):
        print(line)
    return 0


def _row(record: Record, now: float) -> dict[str, Any]:
    last = record.attempts[-1] if record.attempts else None
    return {
        "id": record.id,
        "type": record.type,
        "task": record.task,
        "state": record.state,
        "reference": record.reference,
        "sent": record.sent,
        "ended": record.ended,
        "age": round(now - record.sent),
        "attempts": len(record.attempts) + (record.running is not None),
        "error": last.error if last is not None else "",
    }


def _show(args: argparse.Namespace) -> int:
    with closing(_store(args)) as store:
        for number, id in enumerate(args.ids):
            record = store.record(id)
            if args.json:
                print(json.dumps(_whole(record)))
                continue
            if number:
                print()
            for line in _text(record):
                print(line)
    return 0


def _cancel(args: argparse.Namespace) -> int:
    too_late = False
    with closing(_store(args)) as store:
        for id in args.ids:
            done = store.cancel(id)
            state = store.record(id).state
            too_late = too_late or not done
            if args.json:
                print(json.dumps({"id": id, "cancelled": done, "state": state}))
            elif done:
                print(f"{plain(id)}: {state if state in ENDED else f'{state}, is told to end'}")
            else:
                print(f"taskqueue: workitem {plain(id)} has ended before: {state}", file=sys.stderr)
    return 1 if too_late else 0


def _whole(record: Record) -> dict[str, Any]:
    return {
        **{each.name: getattr(record, each.name) for each in fields(record)},
        "attempts": [
            {**attempt._asdict(), "run": attempt.run and attempt.run._asdict()} for attempt in record.attempts
        ],
        "running": record.running and record.running._asdict(),
        "progress": record.progress and record.progress._asdict(),
        "result": record.result and _shown(record.result),
    }


def _shown(result: Payload) -> dict[str, str]:
    """Text, or `body_base64` instead."""
    try:
        return {"content_type": result.content_type, "body": result.body.decode()}
    except UnicodeDecodeError:
        return {"content_type": result.content_type, "body_base64": base64.b64encode(result.body).decode()}


def _text(record: Record) -> Iterator[str]:
    times = {"sent": record.sent, "due": record.due, "ended": record.ended}
    values = {
        "id": record.id,
        "type": record.type,
        "task": record.task,
        "state": record.state,
        "reference": record.reference,
        "sender": record.sender,
        **{name: _when(moment) for name, moment in times.items() if moment is not None},
    }
    if record.progress is not None:
        progress = record.progress
        of = "" if progress.total is None else f" of {progress.total:g}"
        values["progress"] = f"{progress.done:g}{of} {progress.note}"
    if record.result is not None:
        values["result"] = " ".join(_shown(record.result).values())
    for name, value in values.items():
        if value:
            yield f"{name:<10}  {plain(value)}"
    for attempt in record.attempts:
        yield from _attempt(attempt)
    if record.running is not None:
        run = record.running
        yield f"running: since {_when(run.started)}, {run.user}@{run.host}:{run.pid}"


def _attempt(attempt: Attempt) -> Iterator[str]:
    run = attempt.run
    yield f"attempt {attempt.number}: {attempt.outcome}"
    if run is not None:
        yield f"  by {plain(f'{run.user}@{run.host}:{run.pid}')} from {_when(run.started)}"
        used = [] if run.ended is None else [f"{run.ended - run.started:.3f} s"]
        used += [] if run.cpu is None else [f"{run.cpu:.3f} s of CPU"]
        used += [] if not run.memory else [f"{run.memory / (1 << 20):.0f} MiB"]
        yield f"  took {', '.join(used)}" if used else "  nobody saw it end"
    if attempt.error:
        yield f"  {plain(attempt.error)}"
    for line in (*attempt.traceback.splitlines(), *(f"log: {line}" for line in attempt.log)):
        yield f"    {plain(line)}".rstrip()


def _when(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
