"""Promise 2 broken: what is malformed is thrown away."""

from __future__ import annotations

from taskqueue import dispatcher
from taskqueue.outcome import Done, Outcome

FAILS = (
    "test_system_dispatcher.py::test_what_is_malformed_becomes_a_dead_letter_whole",
    "test_dispatcher_properties.py::test_a_dispatcher_loses_and_multiplies_no_message",
)

parsed = dispatcher.Dispatcher._parsed


def careless(self: dispatcher.Dispatcher, workitem: object) -> Outcome:
    outcome = parsed(self, workitem)
    return outcome if isinstance(outcome, dispatcher.Forward) else Done(None)


dispatcher.Dispatcher._parsed = careless
