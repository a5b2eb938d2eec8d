"""A format for taskqueue: workitems as HTML forms and `curl --data` send them."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from taskqueue.errors import FormatError
from taskqueue.formats import Extracted
from taskqueue.workitem import Workitem

MOST_FIELDS = 1000


class FormData:
    """`worker_type=T&reference=R&name=value&...`: the workitem is an object of all other fields."""

    def extract(self, workitem: Workitem) -> Extracted:
        fields = read(workitem.body)
        return Extracted(
            type=only(fields.pop("worker_type", []), "worker_type"),
            reference=only(fields.pop("reference", [""]), "reference"),
            body=json.dumps(simple(fields)).encode(),
            content_type="application/json",
        )

    def value(self, body: bytes, content_type: str) -> object:
        return simple(read(body))


def read(body: bytes) -> dict[str, list[str]]:
    """The values of each field, in order.  Raises FormatError."""
    if not body:
        return {}
    try:
        return parse_qs(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError as error:
        raise FormatError(f"no form data: {error}") from None


def only(values: list[str], name: str) -> str:
    """The value of a field that must be there once.  Raises FormatError."""
    if len(values) != 1:
        raise FormatError(f"expected {name} once, and it is there {len(values)} times")
    return values[0]


def simple(fields: dict[str, list[str]]) -> dict[str, str | list[str]]:
    """The value of each field, or a list of them where it is there more than once."""
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
