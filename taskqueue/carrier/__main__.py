"""`python -m taskqueue.carrier FD [PID]`, started by the manager.  PID: of the program that it is a part of."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

from taskqueue.carrier.manager_end import ManagerEnd
from taskqueue.process.protocol import inherited_socket
from taskqueue.process.spawn import tie_to
from taskqueue.title import set_title

_PR_SET_DUMPABLE = 4
COLLECT_EVERY = 50_000
"""Objects.  Workitems are in no cycles, and to look for cycles after each 700 would take a tenth of the time."""


async def main() -> None:
    await ManagerEnd(inherited_socket(sys.argv)).run()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        tie_to(int(sys.argv[2]))
    # Its memory holds the broker's password: not readable for other processes of the same user.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    set_title("carrier")
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)
    asyncio.run(main())
