"""Sends at a rate, the same way in all that are compared."""

from __future__ import annotations

import time
from collections.abc import Iterator

SECONDS = 4.0
TICK = 0.02  # seconds between two sends


def paced(rate: float, seconds: float = SECONDS) -> Iterator[int]:
    """How many to send now, again and again, so that it is `rate` a second for `seconds`."""
    begun = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - begun) < seconds:
        if due := int(passed * rate) - sent:
            yield due
            sent += due
        time.sleep(TICK)
