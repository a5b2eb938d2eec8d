"""Where the daemons' log goes."""

from __future__ import annotations

import configparser
import logging
import logging.config
import logging.handlers
import sys
from pathlib import Path

from taskqueue.config import Config
from taskqueue.errors import ConfigError

__all__ = ["set_up"]

_FORMAT = "%(levelname)s %(name)s: %(message)s"
_SYSLOG = Path("/dev/log")


def set_up(config: Config, *, name: str, foreground: bool, verbosity: int = 0) -> None:
    """Log as the configuration's `logging.config` sections say; without them to the standard error in the foreground,
    else to syslog.  May be called again, with another configuration.

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
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}[%(process)d] {_FORMAT}"))
    elif _SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"{name}[%(process)d]: {_FORMAT}"))
    else:
        handler = logging.NullHandler()
    level = logging.getLevelName(config.log_level.upper()) - 10 * verbosity
    logging.basicConfig(level=max(logging.DEBUG, level), handlers=[handler], force=True)


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
