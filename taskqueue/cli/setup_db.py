"""`taskqueue setup-db`: makes the schema in a PostgreSQL database, or upgrades it."""

from __future__ import annotations

import argparse
from pathlib import Path

from taskqueue.config import load, mask_url
from taskqueue.errors import Unsupported

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command to a program's commands."""
    parser = subparsers.add_parser(
        "setup-db",
        help="make or upgrade the schema in a PostgreSQL database",
        description="Make the schema in the PostgreSQL database that the URL names, as a role that may. Other brokers "
        "set themselves up.",
    )
    parser.add_argument("--print", action="store_true", dest="prints", help="print the SQL, and do nothing")
    parser.add_argument("--upgrade", action="store_true", help="upgrade a schema that is there")
    parser.add_argument("-n", "--dry-run", action="store_true", help="do it, say so, and undo it")
    parser.set_defaults(run=_run)
    return parser


def _run(args: argparse.Namespace) -> int:
    url = load(Path(args.config) if args.config else None, {}, url=args.url).url
    if not url.startswith("postgresql:"):
        raise Unsupported(f"{mask_url(url)} is no postgresql:// URL, and needs no setting up")
    from taskqueue.brokers.postgresql.place import parse  # its driver is needed for this alone
    from taskqueue.brokers.postgresql.setup import script, set_up

    place = parse(url)
    if args.prints:
        print(script(place, upgrade=args.upgrade), end="")
    else:
        set_up(place, upgrade=args.upgrade, dry_run=args.dry_run, say=print)
    return 0
