"""Promise 4 broken: a handler's own transaction is committed, though its workitem is somebody else's by now."""

from __future__ import annotations

from taskqueue.brokers.postgresql import setup

FAILS = (
    "test_completing.py::test_what_was_given_to_somebody_else_is_not_completed_by_its_former_holder[postgresql]",
    "test_completing.py::test_a_lost_lease_undoes_the_callers_transaction_whatever_it_does",
)

migrations = setup.migrations
FENCE = "IF held IS NOT TRUE THEN"


def without_the_fence():
    found = migrations()
    assert any(FENCE in text for _, _, text in found)
    return [(number, name, text.replace(FENCE, "IF false THEN")) for number, name, text in found]


setup.migrations = without_the_fence
