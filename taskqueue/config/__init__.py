"""The configuration: `load` gives immutable values, or every problem of the file at once.

options   every option: name, default, meaning
parsers   text of an option -> value
ini       text of the file -> sections with their lines
groups    sections -> groups
load      all of it, from a file or a text
users     what only the host knows: whether users exist
"""

from __future__ import annotations

from taskqueue.config.load import load, parse
from taskqueue.config.secrets import is_secret, mask, mask_pairs, mask_url
from taskqueue.config.users import check_users, user_exists
from taskqueue.config.values import DEFAULT_PATH, DEFAULT_URL, Config, Group, effective_user, service_user

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_URL",
    "Config",
    "Group",
    "check_users",
    "effective_user",
    "is_secret",
    "load",
    "mask",
    "mask_pairs",
    "mask_url",
    "parse",
    "service_user",
    "user_exists",
]
