"""What the tests of formats share: messages, and what comes of them."""

from __future__ import annotations

from typing import Any

import pytest

from taskqueue.errors import FormatError
from taskqueue.formats import parse
from taskqueue.workitem import Workitem

JSON = "application/json"
LIMIT = 1 << 20


def short(argument: object) -> str:
    """The name of a case; the largest of them would not fit into one."""
    return ascii(argument)[:40] if isinstance(argument, str | bytes) else type(argument).__name__


def message(body: bytes, content_type: str = JSON, **properties: Any) -> Workitem:
    return Workitem(body=body, content_type=content_type, **properties)


def parsed(body: bytes, content_type: str = JSON, **properties: Any) -> Workitem:
    return parse(message(body, content_type, **properties), max_body=LIMIT)


def refused(body: bytes, content_type: str = JSON, **properties: Any) -> str:
    with pytest.raises(FormatError) as caught:
        parsed(body, content_type, **properties)
    return caught.value.detail


def envelope(workitem: str, worker_type: str = '"t"') -> bytes:
    return f'{{"worker_type": {worker_type}, "workitem": {workitem}}}'.encode()


def ruote(worker_type: str = '"t"', more: str = "") -> bytes:
    return f'{{"fei": {{"wfid": "w"}}, "fields": {{"params": {{"worker_type": {worker_type}}}}}{more}}}'.encode()
