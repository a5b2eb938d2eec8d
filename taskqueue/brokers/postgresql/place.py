"""Where a PostgreSQL is, and what a URL says beside that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import conninfo

from taskqueue.config import mask_url
from taskqueue.errors import BrokerError

__all__ = ["Place", "parse"]

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_ON_OFF = {"on": True, "off": False}
# What libpq does by default is to wait for minutes for a host that is gone.
_DEFAULTS = {
    "application_name": "taskqueue",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A schema in a database.

    conninfo: for libpq; has the password.
    heartrate: seconds between two renewals of a carrier's lease; with twice that time without one it is dead.
    notify: whether LISTEN and NOTIFY wake up who waits; where not, all is found by polling.
    shown: the place in messages, without secrets.
    """

    conninfo: str = field(repr=False)
    schema: str = "taskqueue"
    heartrate: float = 10.0
    notify: bool = True
    shown: str = "postgresql:"


def parse(url: str) -> Place:
    """The place that a URL names.  Raises BrokerError for what is no such URL."""
    parts = urlsplit(url)
    ours: dict[str, str] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("schema", "heartrate", "notify"):
            ours[name] = value
        else:
            theirs.append((name, value))
    schema = ours.get("schema", "taskqueue")
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise BrokerError(f"schema={schema}: expected lower-case letters, digits and _, at most 63, and not pg_...")
    if ours.get("notify", "on") not in _ON_OFF:
        raise BrokerError(f"notify={ours['notify']}: expected on or off")
    try:
        heartrate = float(ours.get("heartrate", "10"))
    except ValueError:
        heartrate = 0.0
    if not 0.5 <= heartrate <= 3600:
        raise BrokerError(f"heartrate={ours['heartrate']}: expected seconds from 0.5 to 3600")
    plain = urlunsplit(parts._replace(query=urlencode(theirs, quote_via=quote)))
    try:
        known = {name: str(value) for name, value in conninfo.conninfo_to_dict(plain).items()}
        whole = conninfo.make_conninfo(**{**_DEFAULTS, **known})
    except psycopg.Error:  # its text has the URL in it
        raise BrokerError(f"no URL that libpq understands: {mask_url(url)}") from None
    host, port = known.get("host", ""), known.get("port", "")
    shown = f"postgresql://{host}{f':{port}' if port else ''}/{known.get('dbname', '')}"
    return Place(
        conninfo=whole, schema=schema, heartrate=heartrate, notify=_ON_OFF[ours.get("notify", "on")], shown=shown
    )
