"""Formats that do all that a format must not do."""

from __future__ import annotations

import sys

from taskqueue.errors import FormatError
from taskqueue.formats import Extracted


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Rotten:
    """Does what the body says."""

    def extract(self, workitem):
        return self.do(workitem.body.decode(), workitem)

    def value(self, body, content_type):
        return self.do(body.decode(), None)

    def do(self, what, workitem):
        match what:
            case "raise":
                raise RuntimeError("rotten on purpose")
            case "exit":
                sys.exit("rotten on purpose")
            case "interrupt":
                raise KeyboardInterrupt
            case "memory":
                raise MemoryError
            case "speechless":
                raise Speechless
            case "speechless refusal":
                raise FormatError(Speechless())
            case "recursion":
                return self.do(what, workitem)
            case "refuse":
                raise FormatError("refused\non purpose" + "x" * 10_000)
            case "change":
                workitem.headers["changed"] = True
            case "type":
                return Extracted(type=None, body=b"", content_type="")
            case "body":
                return Extracted(type="echo", body="text", content_type="text/plain")
            case "content type":
                return Extracted(type="echo", body=b"", content_type=None)
            case "reference":
                return Extracted(type="echo", body=b"", content_type="text/plain", reference=5)
            case "large":
                return Extracted(type="echo", body=b"x" * (1 << 24), content_type="text/plain")
            case "wrong type":
                return Extracted(type="../echo", body=b"", content_type="text/plain")
            case "nothing":
                return None
        return Extracted(type="echo", body=what.encode(), content_type="text/plain")


class Incomplete:
    def extract(self, workitem):
        return Extracted(type="echo", body=b"", content_type="text/plain")
