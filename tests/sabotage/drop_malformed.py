"""Promise 2 broken: what is malformed is thrown away."""

from __future__ import annotations

from typing import Any

from taskqueue import intake
from taskqueue.outcome import Done, Forward, Outcome

FAILS = (
    "test_system_dispatcher.py::test_what_is_malformed_becomes_a_dead_letter_whole",
    "test_dispatcher_properties.py::test_a_dispatcher_loses_and_multiplies_no_message",
)

parsed = intake.parsed


def careless(*arguments: Any, **more: Any) -> Outcome:
    outcome = parsed(*arguments, **more)
    return outcome if isinstance(outcome, Forward) else Done(None)


intake.parsed = careless
