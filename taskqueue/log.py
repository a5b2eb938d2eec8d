"""Where the daemons' log goes."""

from __future__ import annotations

import configparser
import logging
import logging.config
import logging.handlers
import sys
from pathlib import Path

from taskqueue.config import Config

__all__ = ["set_up"]

_FORMAT = "%(levelname)s %(name)s: %(message)s"
_SYSLOG = Path("/dev/log")


def set_up(config: Config, *, name: str, foreground: bool, verbosity: int = 0) -> None:
    """Log as the configuration's `logging.config` sections say; without them to the standard error in the foreground,
    else to syslog.  May be called again, with another configuration.

    verbosity: levels by which more (positive) or less is logged than the configuration says.
    """
    # pika reports every step of every failed connection; what matters of it is said in one line by ourselves.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    if config.logging:
        parser = configparser.RawConfigParser()
        parser.read(config.path, encoding="utf-8")
        logging.config.fileConfig(parser, disable_existing_loggers=False)
        return
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] {_FORMAT}"))
    elif _SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"{name}[%(process)d]: {_FORMAT}"))
    else:
        handler = logging.NullHandler()
    level = logging.getLevelName(config.log_level.upper()) - 10 * verbosity
    logging.basicConfig(level=max(logging.DEBUG, level), handlers=[handler], force=True)
