"""Sending, and asking what became of it: `taskqueue.connect(url)`."""

from taskqueue.client.deferred import Deferred
from taskqueue.client.queue import Queue, connect
from taskqueue.client.sending import Sender
from taskqueue.client.together import Gathered, as_completed, progress

__all__ = ["Deferred", "Gathered", "Queue", "Sender", "as_completed", "connect", "progress"]
