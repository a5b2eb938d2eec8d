"""The configuration: from the bytes of a file to its sections; and the users that it names."""

from __future__ import annotations

import configparser
import importlib
import os
from pathlib import Path

import pytest
from configurations import DESIGN, PATH, PLUGINS, read
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.config import Config, Group, check_users, effective_user, ini, load, service_user
from taskqueue.config.ini import Report
from taskqueue.config.values import embedded_directory
from taskqueue.errors import ConfigError

loading = importlib.import_module("taskqueue.config.load")  # the package has a function of that name

LINES = st.sampled_from(
    [
        "[a]",
        "[b]",
        "[DEFAULT]",
        "x = 1",
        "X: 2",
        "y=",
        "  z = 3",
        "\tmore",
        "",
        " ",
        "; c",
        "  # c",
        "no",
        "= 1",
        "x = a ; b",
    ]
)


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]))
@settings(deadline=None, max_examples=500)
def test_sections_and_options_are_read_as_configparser_reads_them(lines: list[str], end: str) -> None:
    text = end.join(lines)
    reference = configparser.RawConfigParser(default_section="")
    report = Report(PATH)

    found = ini.read(text, report)

    try:
        reference.read_string(text)
    except configparser.Error:
        assert report.problems
        return
    assert report.problems == ()
    assert {name: {e.name: e.value for e in section.entries.values()} for name, section in found.items()} == {
        name: dict(reference[name]) for name in reference.sections()
    }
    for section in found.values():
        assert lines[section.line - 1] == f"[{section.name}]"
        assert all(lines[e.line - 1].strip().lower().startswith(e.name) for e in section.entries.values())


class TestReading:
    def test_a_file_that_was_named_and_is_missing_is_an_error_that_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no such file; an empty one is a complete configuration"):
            load(tmp_path / "config.ini", PLUGINS)

    def test_where_no_file_is_the_embedded_broker_is_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "DEFAULT_PATH", tmp_path / "config.ini")
        monkeypatch.setattr(loading, "embedded_directory", lambda environment, root: tmp_path / "a state")

        config = load(None, PLUGINS)

        assert config.url == f"sqlite:///{tmp_path}/a%20state/queue.db"
        assert (tmp_path / "a state").stat().st_mode & 0o777 == 0o700
        assert load(None, PLUGINS, url="amqp://h").url == "amqp://h"

    def test_a_directory_of_the_embedded_broker_that_can_not_be_made_is_an_error_that_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setattr(loading, "DEFAULT_PATH", tmp_path / "config.ini")
        monkeypatch.setattr(loading, "embedded_directory", lambda environment, root: tmp_path / "file" / "state")

        with pytest.raises(ConfigError, match=r"file/state: the embedded broker.*can't be made: Not a directory"):
            load(None, PLUGINS)

    @pytest.mark.parametrize(
        ("environment", "root", "directory"),
        [
            ({"HOME": "/home/ann"}, False, "/home/ann/.local/state/taskqueue"),
            ({"HOME": "/home/ann", "XDG_STATE_HOME": "/state"}, False, "/state/taskqueue"),
            ({"HOME": "/home/ann", "XDG_STATE_HOME": "relative"}, False, "/home/ann/.local/state/taskqueue"),
            ({"HOME": "/root", "XDG_STATE_HOME": "/state"}, True, "/var/lib/taskqueue"),
        ],
    )
    def test_the_embedded_broker_has_a_place_for_each_user(
        self, environment: dict[str, str], root: bool, directory: str
    ) -> None:
        assert embedded_directory(environment, root=root) == Path(directory)

    def test_a_file_that_was_named_is_missed_even_with_a_url(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            load(tmp_path / "config.ini", PLUGINS, url="amqp://h")

    def test_a_directory_can_not_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"can't be read: Is a directory"):
            load(tmp_path, PLUGINS)

    def test_a_file_that_is_not_utf_8_is_a_problem_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "config.ini"
        path.write_bytes("[worker1]\nname = ü\nname2 = ".encode() + b"\xe4\n")

        with pytest.raises(ConfigError) as caught:
            load(path, PLUGINS)

        assert str(caught.value).startswith(f"{path}:3: byte 0xe4 in column 9 is not UTF-8")

    def test_something_huge_is_no_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is no configuration"):
            load(Path("/dev/zero"), PLUGINS)

    @pytest.mark.parametrize(
        "secret", ["[amqp]\npasswd = x", "[taskqueue]\nurl = amqp://u:x@h", "[worker1]\napi_token = x"]
    )
    def test_a_secret_that_everyone_may_read_is_a_warning(self, tmp_path: Path, secret: str) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"{secret}\n")

        path.chmod(0o644)
        public = load(path, PLUGINS).warnings
        path.chmod(0o640)
        private = load(path, PLUGINS).warnings

        assert private == ()
        assert len(public) == 1 and public[0].startswith(f"{path}:2: ") and "every user of this host" in public[0]

    def test_a_file_that_everyone_may_read_without_a_secret_is_fine(self, tmp_path: Path) -> None:
        path = tmp_path / "config.ini"
        path.write_text(DESIGN)
        path.chmod(0o644)

        assert load(path, PLUGINS).warnings == ()


class TestUsers:
    def test_the_user_of_a_group(self) -> None:
        own, other = Group(name="a", type="a", user="bifh1"), Group(name="b", type="b")
        plain, named = Config(), Config(worker_user="w")

        def user(group: Group, config: Config, root: bool, *there: str) -> str:
            return effective_user(group, config, root=root, exists=lambda name: name in there)

        assert user(own, named, True) == "bifh1"
        assert user(own, plain, False) == "bifh1"
        assert user(other, named, True, "taskqueue-worker") == "w"
        assert user(other, plain, True, "taskqueue-worker") == "taskqueue-worker"
        assert user(other, plain, True) == "nobody"
        assert user(other, named, False) == ""

    def test_the_user_of_the_daemons(self) -> None:
        assert service_user(Config(user="s"), root=True, exists=lambda _: False) == "s"
        assert service_user(Config(), root=True, exists=lambda name: name == "taskqueue") == "taskqueue"
        assert service_user(Config(), root=True, exists=lambda _: False) == ""
        assert service_user(Config(user="s"), root=False, exists=lambda _: True) == ""

    def test_users_that_this_host_does_not_have_are_told(self) -> None:
        config = read(f"[taskqueue]\nuser = x\n{DESIGN}")

        as_root = check_users(config, root=True, exists=lambda name: name == "bifh1")
        all_there = check_users(config, root=True, exists=lambda _: True)
        not_root = check_users(config, root=False, exists=lambda name: name == "bifh1")

        assert all_there == ()
        assert as_root == (
            "config.ini:2: [taskqueue] user = 'x': there is no such user on this host",
            "config.ini: there is no user taskqueue-worker on this host: worker processes of groups without a user "
            "run as nobody; expected worker_user in [taskqueue]",
            "config.ini:19: [worker2_bifh2] user = 'bifh2': there is no such user on this host",
        )
        assert not_root == as_root[2:]

    def test_daemons_that_stay_root_are_told(self) -> None:
        [daemons] = check_users(read("", {}), root=True, exists=lambda _: False)

        assert "dispatcher and carrier run as root" in daemons


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_text("")
    path.chmod(0)

    with pytest.raises(ConfigError, match=r"can't be read: Permission denied"):
        load(path, PLUGINS)
