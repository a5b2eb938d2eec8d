"""`taskqueue send TYPE [BODY | -]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from taskqueue.broker import Producer, connect
from taskqueue.config import load
from taskqueue.dispatcher import broker_options
from taskqueue.workitem import Workitem, is_type

__all__ = ["add_parser"]

CHUNK = 1000  # workitems that are sent at a time


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a program's commands."""
    parser = subparsers.add_parser(
        "send",
        help="send a workitem",
        description="Send a workitem straight to the queue of its type; no dispatcher is needed. "
        "Prints its id once the broker has stored it.",
    )
    parser.add_argument("type", metavar="TYPE", help="the worker type")
    parser.add_argument("body", metavar="BODY", nargs="?", default="", help="the body; -: the standard input")
    parser.add_argument(
        "--content-type", default="text/plain", metavar="TYPE",
        help="what the body is: text/plain (default), application/json, or anything else for bytes",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=1, metavar="N", help="send it N times")
    parser.add_argument("--reference", default="", help="the business object that it is about, such as order:4711")
    parser.add_argument("--id", default="", help="its id (default: a new one)")
    parser.add_argument("--wait", action="store_true", help="print its result; exit status 1 if it failed")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="with --wait: no longer than that")
    parser.set_defaults(run=lambda args: _run(args, parser))
    return parser


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if not is_type(args.type):
        parser.error(f"{args.type!r} can't be a worker type: letters, digits, '.', '_', '-', 128 at most")
    if args.count < 1:
        parser.error("--count: expected a number from 1")
    if args.id and args.count > 1:
        parser.error("--id goes with one workitem only")
    if len(args.id.encode(errors="surrogateescape")) > 255:
        parser.error("--id: 255 bytes at most")
    if args.timeout is not None and not (args.wait and args.timeout >= 0):
        parser.error("--timeout: expected a number of seconds, and --wait")
    body = sys.stdin.buffer.read() if args.body == "-" else args.body.encode(errors="surrogateescape")
    config = load(Path(args.config) if args.config else None, {}, url=args.url)
    workitem = Workitem(
        body=body,
        id=args.id,
        content_type=args.content_type,
        type=args.type,
        reference=args.reference,
        timestamp=int(time.time()),
    )
    producer = connect(broker_options(config)).producer()
    try:
        return _send(producer, workitem, args)
    finally:
        producer.close()


def _send(producer: Producer, workitem: Workitem, args: argparse.Namespace) -> int:
    ids: list[str] = []
    while len(ids) < args.count:
        batch = [workitem] * min(CHUNK, args.count - len(ids))
        sent = producer.send(batch, reply=args.wait)
        ids += sent
        if not args.wait:
            for id in sent:
                print(json.dumps({"id": id}) if args.json else id)
    return _wait(producer, set(ids), args) if args.wait else 0


def _wait(producer: Producer, ids: set[str], args: argparse.Namespace) -> int:
    status = 0
    while ids:
        reply = producer.next_reply(timeout=args.timeout)
        if reply is None:
            print(f"taskqueue: no result of {len(ids)} workitems within {args.timeout:g} s", file=sys.stderr)
            return 1
        if reply.correlation_id not in ids:
            continue  # a workitem that ran twice answers twice
        ids.discard(reply.correlation_id)
        failed = reply.headers.get("status") != "succeeded"
        status = max(status, failed)
        if args.json:
            print(json.dumps(_shown(reply)))
        elif failed:
            print(f"taskqueue: workitem {reply.correlation_id} failed: {reply.headers.get('error')}", file=sys.stderr)
            if args.verbose and reply.headers.get("traceback"):
                print(reply.headers["traceback"], file=sys.stderr)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(reply.body + (b"" if reply.body.endswith(b"\n") else b"\n"))
            sys.stdout.buffer.flush()
    return status


def _shown(reply: Workitem) -> dict[str, Any]:
    headers = reply.headers
    shown: dict[str, Any] = {"id": reply.correlation_id, "status": headers.get("status")}
    text = reply.body.decode(errors="backslashreplace")
    shown["result"] = json.loads(reply.body) if reply.content_type == "application/json" else text
    for name in ("error", "traceback"):
        if name in headers:
            shown[name] = headers[name]
    return shown
