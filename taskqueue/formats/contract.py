"""What a format is: what third parties write, and what is known of all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from taskqueue.workitem import Workitem

__all__ = ["Extracted", "Format", "Formats", "media"]


@lru_cache(maxsize=1024)
def media(content_type: str) -> str:
    """A content type in lower case, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What a format found in a message.

    body, content_type: the bare workitem, and what it is.
    reference: empty where the body names none; that of the header is kept then.
    """

    type: str
    body: bytes
    content_type: str
    reference: str = ""


class Format(Protocol):
    """Understands bodies of one content type.  No I/O in it: everything waits for it."""

    def extract(self, workitem: Workitem) -> Extracted:
        """Find type and bare body in the message `workitem`.  Raises FormatError.

        It runs in the dispatcher, between two messages.
        """

    def value(self, body: bytes, content_type: str) -> object:
        """What a handler gets for a bare workitem of this content type.  Raises FormatError.

        It runs in worker processes, before the handler.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """All formats that are known, and what is read as one of theirs.

    known: by content type, in lower case.
    default: the content type of a body that comes without one; empty: such a body is opened by nobody.
    read_as: what content types stand for, both in lower case.
    """

    known: Mapping[str, Format]
    default: str = ""
    read_as: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def meant(self, content_type: str) -> str:
        """The content type that `content_type` stands for, with the parameters of the latter."""
        given = media(content_type)
        meant = self.read_as.get(given, given) or self.default
        return content_type if meant == given else meant + content_type[len(content_type.partition(";")[0]) :]
