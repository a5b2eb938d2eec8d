"""Sending, and asking what became of it: `taskqueue.connect(url)`."""

from taskqueue.client.queue import Queue, connect
from taskqueue.client.sending import Sender

__all__ = ["Queue", "Sender", "connect"]
