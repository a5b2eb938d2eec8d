"""The broker's password in a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from configurations import PLUGINS

from taskqueue.config import Config, load
from taskqueue.errors import ConfigError

SECRET = "hush/cr:et@\u00fc 1"


def written(directory: Path, content: bytes | None, name: str = "secret", *, more: str = "") -> Path:
    """A configuration whose password_file is `name`, with `content` in it."""
    config = directory / "config.ini"
    config.write_text(f"[amqp]\npassword_file = {name}\n{more}")
    config.chmod(0o640)
    if content is not None:
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o640)
    return config


def password(config: Config) -> str:
    return unquote(urlsplit(config.url).password or "")


def problem(config: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, PLUGINS)
    [found] = caught.value.problems
    assert "hush" not in found
    return found


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_it_is_read_without_the_end_of_its_line(tmp_path: Path, end: bytes) -> None:
    config = load(written(tmp_path, SECRET.encode() + end), PLUGINS)

    assert password(config) == SECRET
    assert config.warnings == ()
    assert SECRET not in repr(config)


def test_only_the_end_of_its_line_is_left_out(tmp_path: Path) -> None:
    assert password(load(written(tmp_path, b" hush \n"), PLUGINS)) == " hush "


def test_a_path_that_is_not_absolute_begins_at_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc" / "keys").mkdir(parents=True)
    config = written(tmp_path / "etc", b"hush", "keys/secret")
    monkeypatch.chdir(tmp_path)

    relative = load(config.relative_to(tmp_path), PLUGINS)
    config.write_text(f"[amqp]\npassword_file = {tmp_path}/etc/keys/secret\n")
    absolute = load(config, PLUGINS)

    assert password(relative) == password(absolute) == "hush"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hush\xff\n", "is not UTF-8"),
        (b"hush\nhush\n", "is not one line of up to 4096 bytes"),
        (b"hush\n\n", "is not one line of up to 4096 bytes"),
        (b"hush\0", "is not one line of up to 4096 bytes"),
        (b"hush" * 3000, "is not one line of up to 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_password_is_a_problem_that_names_it(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    found = problem(written(tmp_path, content))

    assert found == (
        f"{tmp_path}/config.ini:2: [amqp] password_file: {tmp_path}/secret {reason}: "
        "expected a file with the password in one line"
    )


def test_a_directory_is_no_password_file_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert "can't be read: Is a directory" in problem(written(tmp_path, None, "."))
    assert "pipe is empty" in problem(written(tmp_path, None, "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    config = written(tmp_path, b"hush")
    (tmp_path / "secret").chmod(0)

    assert "can't be read: Permission denied" in problem(config)


def test_a_file_that_every_user_may_read_is_a_warning(tmp_path: Path) -> None:
    config = written(tmp_path, b"hush\n")
    (tmp_path / "secret").chmod(0o644)

    assert load(config, PLUGINS).warnings == (
        f"{config}:2: [amqp] password_file: every user of this host may read {tmp_path}/secret: "
        "expected mode 0640 or less",
    )


def test_a_configuration_that_every_user_may_read_may_name_it(tmp_path: Path) -> None:
    config = written(tmp_path, b"hush\n")
    config.chmod(0o644)

    assert load(config, PLUGINS).warnings == ()


@pytest.mark.parametrize("option", ["password", "passwd"])
def test_there_is_one_password(tmp_path: Path, option: str) -> None:
    config = written(tmp_path, b"hush", more=f"{option} = hush\n")

    assert problem(config) == (f"{config}:2: [amqp] password_file: expected either password or password_file, not both")


def test_it_is_not_read_where_a_url_names_the_broker(tmp_path: Path) -> None:
    config = written(tmp_path, None)

    assert load(config, PLUGINS, url="amqp://h").url == "amqp://h"
    config.write_text("[amqp]\npassword_file = secret\n[taskqueue]\nurl = amqp://h\n")
    named = load(config, PLUGINS)
    assert named.url == "amqp://h"
    assert "[amqp]: only heartbeat is used" in named.warnings[0]


def test_an_empty_one_is_none(tmp_path: Path) -> None:
    config = written(tmp_path, None, "", more="password = hush\n")

    assert password(load(config, PLUGINS)) == "hush"
    config.write_text("[amqp]\npassword_file =\n")
    assert load(config, PLUGINS).url == "amqp://localhost"
