"""Where the daemons' log goes."""

from __future__ import annotations

import configparser
import logging
import logging.config
import logging.handlers
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from taskqueue.config import Config
from taskqueue.errors import ConfigError

__all__ = ["JournalFormatter", "is_journal", "set_up"]

_FORMAT = "%(levelname)s %(name)s: %(message)s"
_SYSLOG = Path("/dev/log")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # of syslog(3)


def set_up(config: Config, *, name: str, foreground: bool, verbosity: int = 0) -> None:
    """Log as the configuration's `logging.config` sections say; without them to the standard error in the foreground,
    else to syslog.  May be called again, with another configuration.

    Where the standard error is systemd's journal, which knows time and process, lines have their priority instead.

    verbosity: levels by which more (positive) or less is logged than the configuration says.

    Raises ConfigError where `logging.config` can't do what the file says; the log is in no state to be used then.
    """
    # pika reports every step of every failed connection; what matters of it is said in one line by ourselves.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    if config.logging:
        _as_configured(config)
        return
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
        if is_journal(os.environ, sys.stderr.fileno()):
            handler.setFormatter(JournalFormatter(_FORMAT))
        else:
            handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] {_FORMAT}"))
    elif _SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"{name}[%(process)d]: {_FORMAT}"))
    else:
        handler = logging.NullHandler()
    level = logging.getLevelName(config.log_level.upper()) - 10 * verbosity
    logging.basicConfig(level=max(logging.DEBUG, level), handlers=[handler], force=True)


def is_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether what is written to `descriptor` goes to systemd's journal, by what systemd.exec(5) says."""
    status = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalFormatter(logging.Formatter):
    """Each line with the priority that the journal is to give it (sd-daemon(3)); tracebacks have several."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _as_configured(config: Config) -> None:
    parser = configparser.RawConfigParser()
    parser.read([config.path, *config.more], encoding="utf-8")
    try:
        logging.config.fileConfig(parser, disable_existing_loggers=False)
    except Exception as error:  # whatever a handler's class raises
        raise ConfigError(f"{config.path}: the log can't be set up: {_innermost(error)}") from None


def _innermost(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
