"""What the tests of the configuration share: the text of a file, and what it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskqueue.config import Config, Group, parse
from taskqueue.errors import ConfigError

TOP = Path(__file__).parent.parent
PATH = Path("config.ini")
PLUGINS = {"worker1": "one:factory", "worker2": "two:factory", "worker3": "three:factory"}
FORMATS = ("application/json", "application/x-own", "text/plain")

DESIGN = """\
[DEFAULT]
workers: 1

; Workers
[worker1]
workers: 3

[worker2]
workers: bifh1, bifh2

[worker2_bifh1]
workers: 1
user: bifh1

[worker2_bifh2]
workers: 1
user: bifh2
"""


def read(text: str, plugins: dict[str, str] | None = None, url: str = "") -> Config:
    return parse(text, PATH, PLUGINS if plugins is None else plugins, formats=FORMATS, url=url)


def problems(text: str, plugins: dict[str, str] | None = None, url: str = "") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, plugins, url)
    return caught.value.problems


def group(text: str, name: str = "worker1") -> Group:
    return {group.name: group for group in read(text).groups}[name]
