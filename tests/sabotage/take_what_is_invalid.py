"""Promise 7 broken: a dispatcher that is reloaded goes on without the problems of its file having been reported."""

from __future__ import annotations

from taskqueue.dispatcher import Dispatcher
from taskqueue.errors import ConfigError

FAILS = ("test_cli_services.py::TestReload::test_one_that_is_refused_is_said_with_its_problems",)

configure = Dispatcher.configure


def careless(self: Dispatcher, installed: object) -> None:
    try:
        configure(self, installed)
    except ConfigError:
        return


Dispatcher.configure = careless
