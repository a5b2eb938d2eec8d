"""Promise 7: SIGTERM kills what runs."""

TEST = "tests/test_system_signals.py -k sigterm_finishes_what_runs"


def apply() -> None:
    from taskqueue.carrier.carrier import Carrier

    drain = Carrier._drain
    Carrier._drain = lambda self, hard: drain(self, hard=True)
