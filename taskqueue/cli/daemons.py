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

from taskqueue import daemon, formats, handover, log
from taskqueue.background import background
from taskqueue.config import Config, load, service_user, user_exists
from taskqueue.errors import ConfigError
from taskqueue.process.spawn import Account, account
from taskqueue.service import Service
from taskqueue.status import status_file
from taskqueue.watch import find_installed

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
        parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)  # by the version before this one
        parser.set_defaults(run=run)
        parsers.append(parser)
    return parsers


def _run(
    args: argparse.Namespace, command: str, config: Config, work: Callable[[daemon.Startup], Coroutine[Any, Any, None]]
) -> int:
    name = f"taskqueue-{command}"
    set_up_log = partial(log.set_up, name=name, foreground=args.foreground, verbosity=args.verbose - args.quiet)
    # Now: the background has another current directory.
    path, pid_file = _path(args), args.pid_file.absolute() if args.pid_file else None
    arguments = _arguments(args, command, pid_file)
    left = handover.left_by_predecessor()
    if args.check:
        return 0
    handover.hold_signals()  # once the pid file names it, one that comes before there is a handler must end nothing
    with (
        daemon.pid_file(pid_file, held=left["pid_file"] if left else None) as descriptor,
        background(name, descriptor, foreground=args.foreground or left is not None) as started,
    ):
        set_up_log(config)
        reloads = left["reloads"] + 1 if left else 0
        service = Service(status_file(pid_file) if pid_file else None, started=started, reloads=reloads)
        startup = daemon.Startup(
            path=path, url=args.url, arguments=arguments, set_up_log=set_up_log, service=service,
            pid_file=descriptor, left=left,
        )  # fmt: skip
        try:
            asyncio.run(work(startup))
        except ConfigError:
            raise
        except Exception as error:
            logger.critical("the %s ends: it can't go on", name, exc_info=True)
            if not args.foreground:
                print(f"{name}: it can't go on: {error!r}", file=sys.stderr)
            sys.exit(1)
    logger.info("ended")
    return 0


def _arguments(args: argparse.Namespace, command: str, pid_file: Path | None) -> list[str]:
    """The command line that means the same from any directory."""
    if args.url:
        os.environ["TASKQUEUE_URL"] = args.url  # its password is not for everybody who can see command lines
    words = [command, *(["-c", str(_path(args))] if args.config else [])]
    words += ["-p", str(pid_file)] if pid_file else []
    words += ["-f"] if args.foreground else []
    return [*words, *["-v"] * args.verbose, *["-q"] * args.quiet]


def _dispatcher(args: argparse.Namespace) -> int:
    from taskqueue.dispatcher import Dispatcher  # the manager does not need a broker's client

    # Found out before the background, so that whoever starts it sees what is wrong.
    config = _load(_path(args), args.url)
    user = _service_account(config)

    async def work(startup: daemon.Startup) -> None:
        dispatcher = Dispatcher(startup)
        dispatcher.configure(await find_installed())
        if user is not None and user.uid != os.geteuid():
            daemon.become(user)  # it needs no rights at all
        await dispatcher.run()

    return _run(args, "dispatcher", config, work)


def _workerpool(args: argparse.Namespace) -> int:
    from taskqueue.workerpool.pool import WorkerPool

    config = _load(_path(args), args.url)

    async def work(startup: daemon.Startup) -> None:
        await WorkerPool(startup).run()

    return _run(args, "workerpool", config, work)


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
        raise ConfigError(
            f"{config.place('user', 'taskqueue')}: [taskqueue] user = {name!r}: there is no such user on this host"
        )
    return user
