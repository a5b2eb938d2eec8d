"""The command `taskqueue`, and the daemons' own executables.

Exit status: 0 done, 1 it failed, 2 usage, 6 configuration.  `status` and `reload` have those of the LSB, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from taskqueue.cli import check_config, config, daemons, dead, demo, send, services, setup_db, tasks, upkeep
from taskqueue.errors import ConfigError, TaskQueueError

__all__ = ["command_line", "dispatcher", "main", "workerpool"]

FAILED, CONFIGURATION = 1, 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run `taskqueue COMMAND`; returns the exit status."""
    return _run(command_line().parse_args(argv))


def command_line() -> argparse.ArgumentParser:
    """All commands with all their options: what is understood, and what the man pages are made of."""
    parser = argparse.ArgumentParser(prog="taskqueue", description="Hands work to worker processes.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (send, tasks, upkeep, dead, check_config, config, daemons, services, setup_db, demo):
        for command in _parsers(module.add_parser(commands)):
            if module not in (demo, services):  # which have no place, or their own
                _add_place(command)
            _add_common(command)
    return parser


def dispatcher() -> int:
    """The executable `taskqueue-dispatcher`."""
    return main(["dispatcher", *sys.argv[1:]])


def workerpool() -> int:
    """The executable `taskqueue-workerpool`."""
    return main(["workerpool", *sys.argv[1:]])


class _Version(argparse.Action):
    """Looks the version up when it is asked for.

    Not before: the metadata finder keeps zipped eggs open, and a daemon closes what it has open when it goes to the
    background.
    """

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        print("taskqueue", metadata.version("taskqueue"))
        parser.exit()


def _parsers(added: argparse.ArgumentParser | Sequence[argparse.ArgumentParser]) -> Sequence[argparse.ArgumentParser]:
    return (added,) if isinstance(added, argparse.ArgumentParser) else added


def _add_place(parser: argparse.ArgumentParser) -> None:
    environment = os.environ
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=environment.get("TASKQUEUE_CONFIG", ""),
        help="the configuration (default: $TASKQUEUE_CONFIG, else /etc/taskqueue/config.ini)",
    )  # fmt: skip
    parser.add_argument(
        "--url", default=environment.get("TASKQUEUE_URL", ""),
        help="the broker, over what the configuration says (default: $TASKQUEUE_URL)",
    )  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="show one JSON object a line")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more")
    parser.add_argument("-q", "--quiet", action="count", default=0, help="log less")


def _run(args: argparse.Namespace) -> int:
    # A command says what matters by itself; daemons set up their log anew.
    logging.basicConfig(level=logging.CRITICAL - 20 * args.verbose, format="taskqueue: %(message)s")
    try:
        status: int = args.run(args)
    except ConfigError as error:
        for problem in error.problems:
            print(f"taskqueue: {problem}", file=sys.stderr)
        return CONFIGURATION
    except TaskQueueError as error:
        print(f"taskqueue: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return status
