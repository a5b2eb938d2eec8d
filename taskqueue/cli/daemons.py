"""`taskqueue dispatcher` and `taskqueue workerpool`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from taskqueue import daemon, log
from taskqueue.config import Config, load, service_user, user_exists
from taskqueue.errors import ConfigError
from taskqueue.process.spawn import account

if TYPE_CHECKING:
    from taskqueue.workerpool import WorkerPool

__all__ = ["add_parser"]

logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> list[argparse.ArgumentParser]:
    """Add both commands to a program's commands."""
    parsers = []
    for name, run, help in (
        ("dispatcher", _dispatcher, "read the queue taskqueue, and pass each workitem on to the queue of its type"),
        ("workerpool", _workerpool, "start and supervise the worker processes that the configuration wants"),
    ):
        parser = subparsers.add_parser(name, help=help, description=f"The daemon: {help}.")
        parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground; log to stderr")
        parser.add_argument("-p", "--pid-file", metavar="FILE", type=Path, help="hold this file while running")
        parser.set_defaults(run=run)
        parsers.append(parser)
    return parsers


def _run(args: argparse.Namespace, name: str, config: Config, work: Callable[[], Awaitable[None]]) -> int:
    try:
        with daemon.pid_file(args.pid_file) as descriptor, daemon.background(descriptor, foreground=args.foreground):
            log.set_up(config, name=name, foreground=args.foreground, verbosity=args.verbose - args.quiet)
            try:
                asyncio.run(_main(work))
            except Exception:
                logger.critical("the %s ends: it can't go on", name, exc_info=True)
                return 1
    except OSError as error:
        if not args.pid_file:
            raise
        print(f"taskqueue: pid file {args.pid_file}: {error.strerror}", file=sys.stderr)
        return 1
    logger.info("ended")
    return 0


async def _main(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _dispatcher(args: argparse.Namespace) -> int:
    from taskqueue.dispatcher import Dispatcher  # the manager does not need a broker's client

    config = load(_path(args), {}, url=args.url)

    async def work() -> None:
        _become_service_user(config)
        await Dispatcher(config).run()

    return _run(args, "taskqueue-dispatcher", config, work)


def _workerpool(args: argparse.Namespace) -> int:
    from taskqueue.workerpool import WorkerPool

    # Found out before the background, so that whoever starts it sees what is wrong.
    config = load(_path(args), {}, url=args.url)

    async def work() -> None:
        pool: WorkerPool = WorkerPool(_path(args), url=args.url)
        pool.configure()
        await pool.run()

    return _run(args, "taskqueue-workerpool", config, work)


def _path(args: argparse.Namespace) -> Path | None:
    return Path(args.config).absolute() if args.config else None


def _become_service_user(config: Config) -> None:
    """A dispatcher needs no rights at all."""
    name = service_user(config, root=os.geteuid() == 0, exists=user_exists)
    if name:
        user = account(name)
        if user is None:
            raise ConfigError(f"{config.path}: [taskqueue] user = {name!r}: there is no such user on this host")
        if user.uid != os.geteuid():
            daemon.become(user)
