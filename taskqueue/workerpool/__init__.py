"""The worker manager: starts the carrier and the worker processes that the configuration wants, and replaces them.

It opens no payload, imports no plugin code, and has no connection.

pool         the loop: look, plan, act; what each signal does
children     the processes that it has: started, ready, ended, or failing
succession   what one version leaves to the next
carrier_end  one carrier as its manager sees it: what is said to it, and whether it answers
"""

from __future__ import annotations

from taskqueue.workerpool.pool import WorkerPool

__all__ = ["WorkerPool"]
