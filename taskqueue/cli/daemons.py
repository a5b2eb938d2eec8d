"""`taskqueue dispatcher` and `taskqueue workerpool`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from taskqueue import daemon, formats, log
from taskqueue.background import background
from taskqueue.config import Config, load, service_user, user_exists
from taskqueue.errors import ConfigError
from taskqueue.process.spawn import Account, account
from taskqueue.service import Service
from taskqueue.status import status_file

__all__ = ["add_parser"]

logger = logging.getLogger(__name__)
SetUpLog = Callable[[Config], None]


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


def _run(
    args: argparse.Namespace, name: str, config: Config, work: Callable[[SetUpLog, Service], Coroutine[Any, Any, None]]
) -> int:
    set_up_log = partial(log.set_up, name=name, foreground=args.foreground, verbosity=args.verbose - args.quiet)
    pid_file = args.pid_file.absolute() if args.pid_file else None  # the background has another current directory
    with (
        daemon.pid_file(pid_file) as descriptor,
        background(name, descriptor, foreground=args.foreground) as started,
    ):
        set_up_log(config)
        service = Service(status_file(pid_file) if pid_file else None, started=started)
        try:
            asyncio.run(work(set_up_log, service))
        except ConfigError:
            raise
        except Exception as error:
            logger.critical("the %s ends: it can't go on", name, exc_info=True)
            if not args.foreground:
                print(f"{name}: it can't go on: {error!r}", file=sys.stderr)
            sys.exit(1)
    logger.info("ended")
    return 0


def _dispatcher(args: argparse.Namespace) -> int:
    from taskqueue.dispatcher import Dispatcher  # the manager does not need a broker's client

    path = _path(args)
    # Found out before the background, so that whoever starts it sees what is wrong.
    config = _load(path, args.url)
    user = _service_account(config)

    async def work(set_up_log: SetUpLog, service: Service) -> None:
        dispatcher = Dispatcher(path, url=args.url, set_up_log=set_up_log, service=service)
        dispatcher.configure()
        if user is not None and user.uid != os.geteuid():
            daemon.become(user)  # it needs no rights at all
        await dispatcher.run()

    return _run(args, "taskqueue-dispatcher", config, work)


def _workerpool(args: argparse.Namespace) -> int:
    from taskqueue.workerpool import WorkerPool

    path = _path(args)
    config = _load(path, args.url)

    async def work(set_up_log: SetUpLog, service: Service) -> None:
        pool = WorkerPool(path, url=args.url, set_up_log=set_up_log, service=service)
        pool.configure()
        await pool.run()

    return _run(args, "taskqueue-workerpool", config, work)


def _path(args: argparse.Namespace) -> Path | None:
    return Path(args.config).absolute() if args.config else None


def _load(path: Path | None, url: str) -> Config:
    installed, _ = formats.discover()
    return load(path, {}, formats=(*formats.BUILTIN, *installed), url=url)


def _service_account(config: Config) -> Account | None:
    """The user that a daemon without rights runs as; None: the one that started it.  Raises ConfigError."""
    name = service_user(config, root=os.geteuid() == 0, exists=user_exists)
    user = account(name) if name else None
    if name and user is None:
        raise ConfigError(f"{config.path}: [taskqueue] user = {name!r}: there is no such user on this host")
    return user
