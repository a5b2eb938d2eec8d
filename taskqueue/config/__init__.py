"""The configuration: `load` gives immutable values, or every problem of the file at once.

options   every option: name, default, meaning
parsers   text of an option -> value
ini       text of the file -> sections with their lines
groups    sections -> groups
load      all of it, from a file or a text
passwords a password that lies in a file of its own
users     what only the host knows: whether users exist
show      all of it as it took effect, with where it came from
"""

from __future__ import annotations

from taskqueue.config.load import File, find, load, parse
from taskqueue.config.secrets import is_secret, mask, mask_pairs, mask_url
from taskqueue.config.show import Setting, settings, text
from taskqueue.config.users import check_users, user_exists
from taskqueue.config.values import DEFAULT_PATH, DEFAULT_URL, Config, Group, effective_user, service_user

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_URL",
    "Config",
    "File",
    "Group",
    "Setting",
    "check_users",
    "effective_user",
    "find",
    "is_secret",
    "load",
    "mask",
    "mask_pairs",
    "mask_url",
    "parse",
    "service_user",
    "settings",
    "text",
    "user_exists",
]
