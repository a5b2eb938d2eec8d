"""The files of conf.d, which are read after the configuration that they lie beside."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
from configurations import PLUGINS

from taskqueue.cli.check_config import run as check
from taskqueue.cli.config import show
from taskqueue.config import Config, check_users, load
from taskqueue.errors import ConfigError


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """A configuration, and a directory conf.d beside it."""
    (tmp_path / "conf.d").mkdir()
    path = tmp_path / "config.ini"
    path.write_text("[DEFAULT]\nworkers = 2\nretries = 1\n\n[worker1]\nuser = one\n")
    return path


def more(main: Path, name: str, text: str, mode: int = 0o644) -> Path:
    path = main.parent / "conf.d" / name
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(main: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(main, PLUGINS)
    return caught.value.problems


def groups(config: Config) -> dict[str, tuple[int, str, int]]:
    return {group.name: (group.workers, group.user, group.retries) for group in config.groups}


def test_later_files_win_option_by_option_in_the_order_of_their_names(main: Path) -> None:
    more(main, "20-two.ini", "[worker1]\nuser = three\n[DEFAULT]\nretries = 3\n")
    more(main, "10-one.ini", "[worker1]\nuser = two\nworkers = 5\n")

    config = load(main, PLUGINS)

    assert groups(config) == {"worker1": (5, "three", 3), "worker2": (2, "", 3), "worker3": (2, "", 3)}
    assert [path.name for path in config.more] == ["10-one.ini", "20-two.ini"]


def test_a_plugin_s_package_brings_its_section_with_groups(main: Path) -> None:
    more(main, "worker2.ini", "[worker2]\nworkers = a, b\nshape = round\n[worker2_a]\nuser = x\n[worker2_b]\n")

    config = load(main, PLUGINS)

    assert groups(config)["worker2_a"] == (2, "x", 1)
    assert dict(config.groups[1].settings) == {"shape": "round"}


def test_only_files_that_end_in_ini_and_are_not_hidden_are_read(main: Path) -> None:
    for name in ("a.ini.dpkg-new", ".a.ini", "a.conf", "a.ini~"):
        more(main, name, "nonsense")

    assert load(main, PLUGINS).more == ()


def test_every_message_names_its_file_and_all_are_said_in_the_order_of_the_files(main: Path) -> None:
    first = more(main, "a.ini", "[worker1]\nretries = many\nnonsense\n")
    second = more(main, "b.ini", "[taskqueue]\nmax_body = much\n[taskqueue]\n")
    main.write_text(main.read_text() + "retries = few\n")

    found = problems(main)

    # What a later file says is said of it alone: the earlier value is not used.
    assert [problem.partition(": ")[0] for problem in found] == [
        f"{first}:2", f"{first}:3", f"{second}:2", f"{second}:3",
    ]  # fmt: skip


def test_the_same_section_in_two_files_is_no_duplicate_and_twice_in_one_is(main: Path) -> None:
    path = more(main, "a.ini", "[worker1]\nretries = 1\nretries = 2\n")

    (problem,) = problems(main)

    assert problem == f"{path}:3: [worker1] retries is there twice: the first is in line 2"


def test_a_group_that_has_no_section_is_said_where_it_is_named(main: Path) -> None:
    path = more(main, "a.ini", "[worker2]\nworkers = x\n")

    (problem,) = problems(main)

    assert problem.startswith(f"{path}:2: [worker2] workers = 'x': ")


def test_an_option_under_its_other_name_goes_before_the_earlier_one(main: Path) -> None:
    main.write_text("[amqp]\npassword = one\n")
    more(main, "a.ini", "[amqp]\npasswd = two\n")

    assert ":two@" in load(main, PLUGINS).url


def test_a_password_file_begins_at_the_directory_of_its_own_file(main: Path) -> None:
    secret = main.parent / "conf.d" / "secret"
    secret.write_text("sesame\n")
    secret.chmod(0o600)
    more(main, "a.ini", "[amqp]\npassword_file = secret\n")

    assert ":sesame@" in load(main, PLUGINS).url


def test_the_file_with_a_secret_that_everybody_may_read_is_named(main: Path) -> None:
    main.chmod(0o640)
    path = more(main, "a.ini", "[amqp]\npassword = sesame\n")

    (warning,) = [each for each in load(main, PLUGINS).warnings if "secret" in each]
    assert warning.startswith(f"{path}:2: [amqp] password is a secret")

    path.chmod(0o640)
    main.chmod(0o644)
    assert not [each for each in load(main, PLUGINS).warnings if "secret" in each]


def test_a_user_that_this_host_does_not_have_is_said_where_it_is_named(main: Path) -> None:
    path = more(main, "a.ini", "[DEFAULT]\nuser = nobody-at-all\n")

    warnings = check_users(load(main, PLUGINS), root=False, exists=lambda name: name == "one")

    assert warnings[0] == f"{path}:2: [worker2] user = 'nobody-at-all': there is no such user on this host"


def test_bytes_that_are_no_text_are_said_of_their_file(main: Path) -> None:
    path = main.parent / "conf.d" / "a.ini"
    path.write_bytes(b"[worker1]\n\xff\n")

    (problem,) = problems(main)

    assert problem.startswith(f"{path}:2: byte 0xff")


def test_a_file_that_is_a_broken_link_is_an_error_that_names_it(main: Path) -> None:
    path = main.parent / "conf.d" / "a.ini"
    path.symlink_to("nothing")

    assert problems(main)[0].startswith(f"{path}: there is no such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_can_not_be_read_is_an_error_that_names_it(main: Path) -> None:
    path = more(main, "a.ini", "", 0o000)

    assert problems(main) == (f"{path}: can't be read: Permission denied",)


def test_a_directory_in_place_of_a_file_is_an_error_that_names_it(main: Path) -> None:
    path = main.parent / "conf.d" / "a.ini"
    path.mkdir()

    assert problems(main) == (f"{path}: can't be read: Is a directory",)


def test_what_is_effective_says_which_file_each_value_comes_from(
    main: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = more(main, "a.ini", "[worker1]\nuser = two\n")

    show(argparse.Namespace(config=str(main), url="", effective=True, json=False), PLUGINS)
    section = capsys.readouterr().out.partition("[worker1]\n")[2].partition("\n[")[0]
    assert f"# {path}:2\nuser = two\n" in section and f"# {main}:2\nworkers = 2\n" in section

    show(argparse.Namespace(config=str(main), url="", effective=True, json=True), PLUGINS)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = {(line["section"], line["option"]): line.get("file") for line in lines}
    assert files["worker1", "user"] == str(path) and files["worker1", "retries"] == str(main)
    assert files["worker1", "threads"] is None


def test_check_config_names_the_files(main: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = more(main, "a.ini", "[worker1]\nuser = two\n")

    check(argparse.Namespace(config=str(main), url="", json=False), PLUGINS)

    assert f"conf.d                 {path}\n" in capsys.readouterr().out


def test_without_a_configuration_the_files_beside_its_usual_place_are_one(
    main: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    monkeypatch.setattr(importlib.import_module("taskqueue.config.load"), "DEFAULT_PATH", main)
    main.unlink()
    more(main, "a.ini", "[worker1]\nworkers = 4\n")

    config = load(None, PLUGINS)

    assert (config.url, config.groups[0].workers) == ("amqp://localhost", 4)
