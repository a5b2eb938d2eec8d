"""What the bytes of a message mean.  The only package that opens payloads; docs/protocol.md describes the wire.

Everything here takes whatever a producer can send, and raises nothing but FormatError, with a detail of one short line.

contract   what a format is
builtin    JSON with Ruote workitems, and text
installed  formats of third parties: found, loaded, and kept from doing harm
messages   from a message to its workitem, to what a handler gets, and from what it returns to a result
jsontext   JSON, read to the letter
chartext   text in all encodings

values     the arguments and results of functions; whoever needs it imports it, for that takes some milliseconds
plain      what JSON can express as it is
writing    from values to what JSON can express
reading    back from that to values
classes    which classes a payload may name
"""

from __future__ import annotations

from taskqueue.formats.builtin import BUILTIN
from taskqueue.formats.contract import Extracted, Format, Formats
from taskqueue.formats.installed import GROUP, Installed, discover, known, refusal
from taskqueue.formats.jsontext import MAX_DEPTH
from taskqueue.formats.messages import MAX_REFERENCE, ONLY_BUILTIN, failed_result, is_reference, parse, payload, value

__all__ = [
    "BUILTIN",
    "GROUP",
    "MAX_DEPTH",
    "MAX_REFERENCE",
    "ONLY_BUILTIN",
    "Extracted",
    "Format",
    "Formats",
    "Installed",
    "discover",
    "failed_result",
    "is_reference",
    "known",
    "parse",
    "payload",
    "refusal",
    "value",
]
