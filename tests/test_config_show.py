"""`taskqueue config show`: what took effect, where it came from, and nothing that is secret."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from configurations import DESIGN, PLUGINS
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from taskqueue.cli import config as command
from taskqueue.config import Config, parse, settings, text
from taskqueue.config.ini import Report, read
from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS
from taskqueue.errors import ConfigError

FORMATS = ("application/json", "text/plain")
EVERYTHING = """\
[DEFAULT]
workers = 2
retries = 1
colour = red
environment = A='two words' B=%(x)s
[taskqueue]
max_body = 512K
workitem_type_map =
    text/json = application/json,
    own = text/plain
[amqp]
Host = broker
port = 99
[worker1]
[worker2]
workers:
  a,
  b
user = bifh1
shapes =
  round

  square
[worker2_a]
retries = 3
workers = 5
environment =
[worker2_b]
colour =
[elsewhere]
time_limit = 1.5m
[store]
url = x
[loggers]
keys = root
[handlers]
keys =
[formatters]
keys =
[logger_root]
level = INFO
handlers =
"""
TEXTS = {
    "empty": "",
    "design": DESIGN,
    "everything": EVERYTHING,
    "url": "[taskqueue]\nurl = amqp://h2\n[amqp]\nhost = h3\nheartbeat = 5\n",
    "heartbeat": "[amqp]\nheartbeat = 5\n",
    "amqp": "[amqp]\nvhost = /a b\n",
}


def shown(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    *,
    effective: bool,
    url: str = "",
    lines: bool = False,
) -> str:
    """What the command prints for a file."""
    path = directory / "config.ini"
    path.write_text(text)
    args = argparse.Namespace(config=str(path), url=url, effective=effective, json=lines)
    assert command.show(args, PLUGINS) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def meaning(text: str, path: Path, url: str = "") -> Config:
    """What a text means, warnings apart."""
    return replace(parse(text, path, PLUGINS, formats=FORMATS, url=url), warnings=())


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_output_is_a_configuration_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, effective: bool
) -> None:
    path = tmp_path / "config.ini"

    out = shown(tmp_path, capsys, text, effective=effective)
    bare = "".join(line + "\n" for line in out.splitlines() if not line.startswith(("#", ";")))

    assert meaning(out, path) == meaning(bare, path) == meaning(text, path)
    assert "only heartbeat" not in "".join(parse(out, path, PLUGINS, formats=FORMATS).warnings)


@pytest.mark.parametrize("effective", [False, True])
def test_a_url_from_elsewhere_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], effective: bool) -> None:
    out = shown(tmp_path, capsys, EVERYTHING, effective=effective, url="sqlite:///x")

    assert meaning(out, tmp_path / "config.ini") == meaning(EVERYTHING, tmp_path / "config.ini", "sqlite:///x")
    assert "# --url\nurl = sqlite:///x\n" in out
    assert re.search(r"(?m)^# .*config.ini:\d+, not used\n; host = broker$", out)


def test_effective_has_every_option_of_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(tmp_path, capsys, EVERYTHING, effective=True)

    sections = read(out, Report(Path("out")))
    assert [*TASKQUEUE] == [*sections["taskqueue"].entries]
    assert [*AMQP] == [*sections["amqp"].entries]
    for name in ("DEFAULT", "worker1", "worker2", "worker2_a", "worker2_b", "worker3", "elsewhere"):
        assert [*WORKERS] == [*sections[name].entries][: len(WORKERS)]
    assert {*sections} >= {"store", "loggers", "handlers", "formatters", "logger_root"}


def test_without_effective_it_has_what_the_file_says_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(tmp_path, capsys, EVERYTHING, effective=False)

    def said(text: str) -> dict[str, set[str]]:
        return {name: {*section.entries} for name, section in read(text, Report(Path("x"))).items()}

    assert said(out) == said(EVERYTHING)
    assert "default" not in out


def test_every_value_has_where_it_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.ini"
    out = shown(tmp_path, capsys, EVERYTHING, effective=True)

    def line(text: str, after: str = "[DEFAULT]") -> int:
        lines = EVERYTHING.splitlines()
        return lines.index(text, lines.index(after)) + 1

    group = out.partition("[worker2_a]\n")[2].partition("\n[")[0]
    for number, option in (
        (line("retries = 3"), "retries = 3"),
        (line("workers = 5"), "workers = 5"),
        (line("user = bifh1"), "user = bifh1"),
        (line("colour = red"), "colour = red"),
    ):
        assert f"# {path}:{number}\n{option}\n" in group
    assert "# default\nmax_crashes = 3\n" in group
    assert f"# {path}:2\nworkers = 2\n" in out.partition("[worker2_b]\n")[2].partition("\n[")[0]
    assert f"# {path}:{line('workers:')}\nworkers =\n    a,\n    b\n" in out.partition("[worker2]\n")[2]


def test_as_json_it_is_one_object_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKQUEUE_URL", "amqp://u:s3cret@h")
    out = shown(tmp_path, capsys, EVERYTHING, effective=True, lines=True, url="amqp://u:s3cret@h")

    objects: dict[tuple[str, str], dict[str, Any]] = {
        (found["section"], found["option"]): found for found in map(json.loads, out.splitlines())
    }
    path, line = str(tmp_path / "config.ini"), EVERYTHING.splitlines().index("user = bifh1") + 1
    assert objects["worker2_a", "user"] == {
        "kind": "setting", "section": "worker2_a", "option": "user", "value": "bifh1",
        "origin": "file", "file": path, "line": line, "inherited": True, "used": True,
    }  # fmt: skip
    assert objects["taskqueue", "url"]["value"] == "amqp://u:***@h"
    assert objects["taskqueue", "url"]["origin"] == "TASKQUEUE_URL"
    assert objects["taskqueue", "user"]["origin"] == "default"
    assert not objects["amqp", "host"]["used"]


SECRET = """\
[taskqueue]
url =
[amqp]
passwd = s3cret
[worker1]
environment = 'API_TOKEN=s3cret s3cret' B_PASSWORD="s3cret s3cret" PLAIN=x
api_token = s3cret
dsn = postgresql://u:s3cret@h/d
[handler_x]
args = ('amqp://u:s3cret@h', 'password=s3cret')
[web]
password = s3cret
"""


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("url", ["", "amqp://u:s3cret@h"])
def test_no_secret_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], effective: bool, lines: bool, url: str
) -> None:
    out = shown(tmp_path, capsys, SECRET, effective=effective, lines=lines, url=url)

    assert "s3cret" not in out
    assert "***" in out and "PLAIN=x" in out
    if not lines:
        (group, *_) = meaning(out, tmp_path / "config.ini").groups
        assert dict(group.environment) == {"API_TOKEN": "***", "B_PASSWORD": "***", "PLAIN": "x"}


def test_a_password_file_is_named_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    text = "[amqp]\npassword_file = key\n"

    for effective in (False, True):
        for lines in (False, True):
            out = shown(tmp_path, capsys, text, effective=effective, lines=lines)
            assert "s3cret" not in out and f"{tmp_path}/key" in out
    out = shown(tmp_path, capsys, text, effective=True)
    assert "# default, not used\n; password = guest\n" in out
    assert meaning(out, Path("/elsewhere/config.ini")).url == meaning(text, tmp_path / "config.ini").url


def test_a_configuration_that_is_not_there_is_that_of_the_embedded_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = importlib.import_module("taskqueue.config.load")
    monkeypatch.setattr(loading, "DEFAULT_PATH", tmp_path / "config.ini")
    monkeypatch.setattr(loading, "embedded_directory", lambda environment, root: tmp_path / "state")

    command.show(argparse.Namespace(config="", url="", effective=False, json=False), PLUGINS)

    out = capsys.readouterr().out
    assert out == (
        "[taskqueue]\n# the embedded broker, as there is no configuration\n"
        f"url = sqlite:///{tmp_path}/state/queue.db\n\n"
    )


def test_a_wrong_configuration_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_text("[taskqueue]\nmax_body = x\n")

    with pytest.raises(ConfigError, match="max_body"):
        command.show(argparse.Namespace(config=str(path), url="", effective=True, json=False), PLUGINS)


def test_a_plugin_that_is_named_like_a_reserved_section_gets_no_section() -> None:
    plugins = {"web": "x:y"}
    config = parse("[DEFAULT]\nretries = 3\n", Path("config.ini"), plugins)

    lines = "\n".join(text(settings(config, {})))

    assert "[web]" not in lines


NAMES = ["DEFAULT", "worker1", "worker2", "worker2_a", "worker2_b", "other"]
ENTRIES = st.sampled_from(
    ["workers = 3", "workers = a", "workers =\n  a, b", "retries = 2", "user = bifh1", "user =", "own = x",
     "own =\n\n  y\n\n  z", "Colour: %(x)s # no ; comment", "environment = A='b c'\n  B=", "time_limit = 1.5m"]
)  # fmt: skip
FILES = st.dictionaries(
    st.sampled_from(NAMES), st.lists(ENTRIES, max_size=4, unique_by=lambda entry: entry.lower()[:4])
).map(lambda file: "".join("\n".join([f"[{name}]", *entries, ""]) for name, entries in file.items()))


@examples(max_examples=300, deadline=None)
@given(FILES, st.booleans())
def test_whatever_a_file_says_the_output_means_the_same(content: str, effective: bool) -> None:
    path = Path("config.ini")
    try:
        config = parse(content, path, PLUGINS)
    except ConfigError:
        return
    sections = read(content, Report(path))

    every = settings(config, sections)
    if not effective:
        every = {
            name: tuple(one for one in every[name] if one.origin == "file" and not one.inherited) for name in sections
        }

    assert meaning("\n".join(text(every)), path) == meaning(content, path)
