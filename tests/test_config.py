"""The configuration: what files mean, and what is said about those that are wrong."""

from __future__ import annotations

import argparse
import configparser
import importlib
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskqueue.cli import check_config
from taskqueue.config import (
    Config,
    Group,
    check_users,
    effective_user,
    ini,
    load,
    mask,
    mask_pairs,
    mask_url,
    parse,
    service_user,
)
from taskqueue.config.ini import Report
from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS
from taskqueue.config.values import embedded_directory
from taskqueue.errors import ConfigError

loading = importlib.import_module("taskqueue.config.load")  # the package has a function of that name

TOP = Path(__file__).parent.parent
PATH = Path("config.ini")
PLUGINS = {"worker1": "one:factory", "worker2": "two:factory", "worker3": "three:factory"}

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
    return parse(text, PATH, PLUGINS if plugins is None else plugins, url)


def problems(text: str, plugins: dict[str, str] | None = None, url: str = "") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, plugins, url)
    return caught.value.problems


def group(text: str, name: str = "worker1") -> Group:
    return {group.name: group for group in read(text).groups}[name]


class TestWhatFilesMean:
    def test_an_empty_file_is_a_complete_configuration(self) -> None:
        config = read("")

        assert config == Config(
            path=PATH,
            url="amqp://localhost",
            groups=tuple(Group(name=type, type=type, entry_point=value) for type, value in PLUGINS.items()),
        )

    def test_the_defaults_are_those_that_are_promised(self) -> None:
        [group] = read("", {"t": "m:a"}).groups
        config = read("", {})

        assert group == Group(
            name="t",
            type="t",
            entry_point="m:a",
            workers=1,
            user="",
            prefetch=0,
            retries=0,
            retry_delay=1.0,
            retry_max_delay=3600.0,
            time_limit=0.0,
            stop_timeout=60.0,
            results_routing_key="results",
            dead_letters=True,
            max_crashes=3,
            environment=(),
            settings=(),
        )
        assert config == Config(
            path=PATH,
            url="amqp://localhost",
            user="",
            worker_user="",
            log_level="info",
            max_body=16 * 1024 * 1024,
            max_types=1000,
            results_max_length=1_000_000,
            dead_retention=30 * 86400.0,
            queue_type="quorum",
            heartbeat=30.0,
            groups=(),
            warnings=(),
            logging=False,
        )

    def test_the_configuration_of_the_design_means_what_the_design_says(self) -> None:
        config = read(DESIGN)

        assert config.warnings == ()
        assert [(group.name, group.type, group.workers, group.user) for group in config.groups] == [
            ("worker1", "worker1", 3, ""),
            ("worker2_bifh1", "worker2", 1, "bifh1"),
            ("worker2_bifh2", "worker2", 1, "bifh2"),
            ("worker3", "worker3", 1, ""),
        ]
        assert [group.entry_point for group in config.groups][1:3] == ["two:factory"] * 2
        assert config.groups[1].queue == "worker_worker2"

    def test_a_group_takes_options_from_its_section_then_its_types_then_default(self) -> None:
        text = """
            [DEFAULT]
            retries = 1
            max_crashes = 10
            prefetch = 5
            colour = red
            [worker2]
            workers = a, b
            retries = 2
            max_crashes = 20
            shape = round
            [worker2_a]
            retries = 3
            shape = square
            [worker2_b]
        """.replace("            ", "")

        a, b, other = group(text, "worker2_a"), group(text, "worker2_b"), group(text, "worker1")

        assert (a.retries, a.max_crashes, a.prefetch) == (3, 20, 5)
        assert (b.retries, b.max_crashes, b.prefetch) == (2, 20, 5)
        assert (other.retries, other.max_crashes, other.prefetch) == (1, 10, 5)
        assert a.settings == (("colour", "red"), ("shape", "square"))
        assert b.settings == (("colour", "red"), ("shape", "round"))
        assert other.settings == (("colour", "red"),)

    def test_a_groups_number_comes_from_default_where_its_section_has_none(self) -> None:
        assert group("[DEFAULT]\nworkers = 4\n[worker2]\nworkers = a\n[worker2_a]\n", "worker2_a").workers == 4

    def test_a_list_may_begin_in_the_line_below(self) -> None:
        config = read("[worker2]\nworkers =\n    a,\n    b\nshapes =\n  round\n  square\n[worker2_a]\n[worker2_b]\n")

        assert [group.name for group in config.groups][1:3] == ["worker2_a", "worker2_b"]
        assert config.groups[1].settings == (("shapes", "\nround\nsquare"),)

    def test_an_empty_user_is_nobody_in_particular_again(self) -> None:
        assert group("[DEFAULT]\nuser = bifh1\n[worker1]\nuser =\n").user == ""

    def test_default_does_not_reach_reserved_sections(self) -> None:
        config = read("[DEFAULT]\nuser = bifh1\nretries = 3\n[taskqueue]\n[amqp]\n")

        assert config.user == ""
        assert config.url == "amqp://localhost"

    def test_percent_signs_are_literal(self) -> None:
        assert group("[worker1]\nformat = %(user)s %d 100%\n").settings == (("format", "%(user)s %d 100%"),)

    def test_colons_comments_upper_case_options_and_windows_line_ends_are_understood(self) -> None:
        text = "\ufeff# one\r\n; two\r\n[worker1]\r\nWORKERS: 2\r\nRetries=3\r\nPath = C:=D\r\n"

        found = group(text)

        assert (found.workers, found.retries, found.settings) == (2, 3, (("path", "C:=D"),))

    def test_section_names_are_case_sensitive(self) -> None:
        config = read("[Worker1]\nworkers = 3\n")

        assert [(group.name, group.workers, group.entry_point) for group in config.groups][:2] == [
            ("Worker1", 3, ""),
            ("worker1", 1, "one:factory"),
        ]

    @pytest.mark.parametrize(
        ("option", "text", "value"),
        [
            ("workers", "0", 0),
            ("prefetch", "AUTO", 0),
            ("prefetch", "50", 50),
            ("retry_delay", "0.5", 0.5),
            ("retry_delay", "90 s", 90.0),
            ("retry_max_delay", "1.5m", 90.0),
            ("time_limit", "2h", 7200.0),
            ("stop_timeout", "1D", 86400.0),
            ("results_routing_key", "", ""),
            ("results_routing_key", "ruote_workitems", "ruote_workitems"),
            ("dead_letters", "Off", False),
            ("dead_letters", "yes", True),
            ("environment", "A=1 B='two words' C=", (("A", "1"), ("B", "two words"), ("C", ""))),
        ],
    )
    def test_values_of_worker_options(self, option: str, text: str, value: object) -> None:
        assert getattr(group(f"[worker1]\n{option} = {text}\n"), option) == value

    @pytest.mark.parametrize(
        ("option", "text", "value"),
        [
            ("max_body", "512K", 524288),
            ("max_body", "1g", 1 << 30),
            ("max_body", "7", 7),
            ("dead_retention", "12h", 43200.0),
            ("queue_type", "Classic", "classic"),
            ("log_level", "DEBUG", "debug"),
            ("worker_user", "bifh1", "bifh1"),
        ],
    )
    def test_values_of_daemon_options(self, option: str, text: str, value: object) -> None:
        assert getattr(read(f"[taskqueue]\n{option} = {text}\n"), option) == value

    def test_values_can_be_compared_and_are_hashable(self) -> None:
        assert hash(read(DESIGN)) == hash(read(DESIGN))
        assert read(DESIGN) == read(DESIGN)
        assert read("[worker1]\na = 1\nb = 2\n") == read("[worker1]\nb = 2\na = 1\n")
        assert read(DESIGN) != read(DESIGN.replace("workers: 3", "workers: 4"))

    def test_the_rules_of_a_group_are_its_options(self) -> None:
        rules = group("[worker1]\nresults_routing_key = r\ndead_letters = off\nmax_crashes = 7\n").rules

        assert (rules.results_routing_key, rules.dead_letters, rules.max_crashes) == ("r", False, 7)


class TestTheBrokersURL:
    def test_the_command_line_goes_before_taskqueue_which_goes_before_amqp(self) -> None:
        amqp = "[amqp]\nhost = h3\nheartbeat = 5\n"

        assert read(f"[taskqueue]\nurl = amqp://h2\n{amqp}", url="amqp://h1").url == "amqp://h1"
        assert read(f"[taskqueue]\nurl = amqp://h2\n{amqp}").url == "amqp://h2"
        assert read(amqp).url == "amqp://guest:guest@h3:5672/%2F"
        assert read(f"[taskqueue]\nurl = amqp://h2\n{amqp}").heartbeat == 5.0

    def test_what_is_given_in_amqp_and_not_used_is_a_warning(self) -> None:
        [warning] = read("[taskqueue]\nurl = amqp://h2\n[amqp]\nhost = h3\n").warnings

        assert warning.startswith("config.ini:3: [amqp]: only heartbeat is used")

    def test_every_part_is_encoded(self) -> None:
        password = "p/a:s@s%20?#ü wörd"

        url = read(f"[amqp]\nhost = ::1\nport = 99\nvhost = /a b\nuser = u@x\npasswd = {password}\ntls = on\n").url

        parts = urlsplit(url)
        assert (parts.scheme, parts.hostname, parts.port) == ("amqps", "::1", 99)
        assert unquote(parts.username or "") == "u@x"
        assert unquote(parts.password or "") == password
        assert unquote(parts.path) == "//a b"

    def test_tls_has_its_own_port(self) -> None:
        assert read("[amqp]\ntls = on\n").url == "amqps://guest:guest@localhost:5671/%2F"

    def test_password_and_passwd_are_one_option(self) -> None:
        assert read("[amqp]\npassword = x\n").url == read("[amqp]\npasswd = x\n").url
        assert problems("[amqp]\npassword = x\npasswd = y\n") == (
            "config.ini:3: [amqp] passwd: expected either password or passwd, not both",
        )


class TestProblems:
    def test_all_are_told_at_once_in_the_order_of_lines(self) -> None:
        text = """\
[worker1]
workers = -1
retries = some
[taskqueue]
max_bodi = 3
log_level = loud
nonsense
[worker1]
[amqp]
port = 70000
port = 1
"""

        assert problems(text) == (
            "config.ini:2: [worker1] workers = '-1': expected a number or names of groups",
            "config.ini:3: [worker1] retries = 'some': expected a whole number, not below 0",
            "config.ini:5: [taskqueue] max_bodi: there is no such option; did you mean max_body?",
            "config.ini:6: [taskqueue] log_level = 'loud': expected debug, info, warning, error or critical",
            "config.ini:7: this line can't be understood: expected [section], or option = value",
            "config.ini:8: [worker1] is there twice: the first is in line 1",
            "config.ini:11: [amqp] port is there twice: the first is in line 10",
        )

    def test_a_named_group_without_section_is_a_problem(self) -> None:
        assert problems("[worker1]\n\nworkers = many\n") == (
            "config.ini:3: [worker1] workers = 'many': expected a number or names of groups, each with its section, "
            "and there is no section [worker1_many]",
        )

    def test_a_group_that_is_nearly_right_gets_a_suggestion(self) -> None:
        [near] = problems("[worker2]\nworkers = bifh1\n[worker2_bifh]\n")
        [whole] = problems("[worker2]\nworkers = worker2_a\n[worker2_a]\n")

        assert near.endswith("no section [worker2_bifh1]; did you mean [worker2_bifh]?")
        assert whole.endswith("no section [worker2_worker2_a]; write a for [worker2_a]")

    def test_groups_have_numbers_and_belong_to_one_type_once(self) -> None:
        nested = problems("[worker2]\nworkers = a\n[worker2_a]\nworkers = b\n[worker2_a_b]\n")
        twice = problems("[worker2]\nworkers = a, a\n[worker2_a]\n")
        shared = problems("[a]\nworkers = b_c\n[a_b]\nworkers = c\n[a_b_c]\n")
        default = problems("[DEFAULT]\nworkers = a\n[worker2_a]\n")
        reserved = problems("[logger]\nworkers = x\n[logger_x]\n")

        assert nested == (
            "config.ini:4: [worker2_a] workers = 'b': expected a number, as this is a group of [worker2]",
        )
        assert twice == ("config.ini:2: [worker2] workers = 'a, a': expected each group once, and a is there twice",)
        assert shared == (
            "config.ini:4: [a_b] workers = 'c': expected names of groups of this type alone, "
            "and [a_b_c] is a group of [a], too",
        )
        assert default == ("config.ini:2: [DEFAULT] workers = 'a': expected a number",)
        assert reserved == (
            "config.ini:2: [logger] workers = 'x': expected a number or names of groups, "
            "and [logger_x] is a reserved section",
        )

    @pytest.mark.parametrize(
        "line",
        [
            "workers = 1.5",
            "workers = ٣",
            "workers =",
            "workers = 1_0",
            "prefetch = 0",
            "prefetch = many",
            "retry_delay = -1",
            "retry_delay = 1 week",
            "time_limit = nan",
            "time_limit = inf",
            "time_limit = 1e5",
            "stop_timeout = 99999d",
            "dead_letters = perhaps",
            "max_crashes = 0",
            "environment = A=1 B",
            "environment = A='1",
            "environment = A=1 A=2",
            "environment = 1A=1",
            "user = a b",
            f"results_routing_key = {'x' * 256}",
        ],
    )
    def test_a_wrong_value_of_a_known_option_is_a_problem_with_its_line(self, line: str) -> None:
        [problem] = problems(f"[worker1]\n{line}\n")

        assert problem.startswith(f"config.ini:2: [worker1] {line.partition(' ')[0]} = ")
        assert ": expected " in problem

    @pytest.mark.parametrize(
        "url",
        ["localhost", "http://host", "amqp//host", "amqp://host:port", "amqp://[::1", "amqp://a b", "amqp://h:99999"],
    )
    def test_a_wrong_url_is_a_problem(self, url: str) -> None:
        [problem] = problems(f"[taskqueue]\nurl = {url}\n")
        [given] = problems("", url=url)

        assert problem.startswith("config.ini:2: [taskqueue] url = ")
        assert given.startswith("config.ini: not used with the URL ")

    def test_worker_processes_do_not_run_as_root_by_the_way(self) -> None:
        [problem] = problems("[taskqueue]\nworker_user = root\n")

        assert problem.startswith("config.ini:2: [taskqueue] worker_user = 'root': expected a user other than root")

    def test_a_default_that_is_wrong_is_told_once(self) -> None:
        assert len(problems("[DEFAULT]\nretries = x\n")) == 1

    def test_sections_that_no_type_can_have(self) -> None:
        assert problems("[my worker]\n[-x]\n") == tuple(
            f"config.ini:{line}: [{name}]: no worker type can have this name: expected up to 128 letters, digits, "
            f"'.', '_' and '-', beginning with a letter or digit"
            for line, name in ((1, "my worker"), (2, "-x"))
        )

    def test_options_before_the_first_section_hide_nothing_behind_it(self) -> None:
        assert problems("workers = 3\nretries = 2\n[worker1]\nworkers = -\n") == (
            "config.ini:1: this line stands before the first section: expected [section], such as [DEFAULT]",
            "config.ini:4: [worker1] workers = '-': expected a number or names of groups",
        )

    def test_a_second_default_is_a_duplicate(self) -> None:
        assert problems("[DEFAULT]\n[worker1]\n[DEFAULT]\n") == (
            "config.ini:3: [DEFAULT] is there twice: the first is in line 1",
        )

    def test_an_indented_option_belongs_to_the_one_above_which_is_said(self) -> None:
        [problem] = problems("[worker1]\nworkers = 1\n  passwd = a b\n")

        assert problem == (
            "config.ini:2: [worker1] workers = '1': expected a number or names of groups; "
            "it goes on in the next line, as every line does that begins with a space or tab"
        )

    def test_a_worker_option_among_those_of_the_daemon_is_told_where_it_belongs(self) -> None:
        assert problems("[taskqueue]\nretries = 3\n") == (
            "config.ini:2: [taskqueue] retries: there is no such option; "
            "it belongs to the section of a worker type, or to [DEFAULT]",
        )


class TestWarnings:
    def test_a_setting_that_nearly_is_an_option(self) -> None:
        config = read("[worker1]\ntime_limits = 3\ncolour = red\n")

        assert config.warnings == (
            "config.ini:2: [worker1] time_limits: did you mean time_limit? It is passed on to the plugin",
        )
        assert config.groups[0].settings == (("colour", "red"), ("time_limits", "3"))

    def test_a_type_that_is_not_installed_stays_in_the_plan_and_breaks_nothing(self) -> None:
        config = read("[elsewhere]\nworkers = 2\n")

        assert config.warnings == ("config.ini:1: [elsewhere]: no plugin for this worker type is installed here",)
        assert config.groups[0] == Group(name="elsewhere", type="elsewhere", workers=2)
        assert [group.entry_point for group in config.groups[1:]] == list(PLUGINS.values())

    def test_a_group_of_a_type_that_is_not_installed_is_no_type(self) -> None:
        config = read(DESIGN, {})

        assert [group.name for group in config.groups] == ["worker1", "worker2_bifh1", "worker2_bifh2"]
        assert [warning.partition(": ")[2][:9] for warning in config.warnings] == ["[worker1]", "[worker2]"]

    @pytest.mark.parametrize(
        ("section", "hint"),
        [
            ("worker2_x", "(for a group of worker2, name x in workers of [worker2])"),
            ("default", "did you mean [DEFAULT]?"),
            ("ampq", "did you mean [amqp]?"),
            ("wroker1", "did you mean [worker1]?"),
        ],
    )
    def test_a_section_that_is_nearly_right_gets_a_suggestion(self, section: str, hint: str) -> None:
        [warning] = read(f"[{section}]\n").warnings

        assert warning.startswith(f"config.ini:1: [{section}]: no plugin") and warning.endswith(hint)

    def test_names_that_collide_stop_nothing_else(self) -> None:
        plugins = {**PLUGINS, "worker2_bifh1": "x:y", "web": "x:y", "my worker": "x:y"}

        config = read(DESIGN, plugins)

        assert sorted(group.name for group in config.groups) == [
            "web", "worker1", "worker2_bifh1", "worker2_bifh2", "worker3",
        ]  # fmt: skip
        assert len(config.warnings) == 3
        assert "a plugin worker2_bifh1 is installed as well, which is not run" in config.warnings[-1]

    def test_reserved_sections_of_later_releases(self) -> None:
        assert read("[store]\nurl = x\n").warnings == (
            "config.ini:1: [store] is reserved for a later release and not used yet",
        )


class TestLogging:
    FILE = """\
[loggers]
keys = root
[handlers]
keys = console
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = console
[handler_console]
class = StreamHandler
formatter = plain
[formatter_plain]
format = %(asctime)s %(message)s
"""

    def test_sections_of_logging_config_are_left_alone(self) -> None:
        config = read(self.FILE)

        assert config.logging and config.warnings == () and len(config.groups) == len(PLUGINS)

    @pytest.mark.parametrize(
        ("old", "new", "problem"),
        [
            ("keys = root", "keys = roots", "config.ini:2: [loggers] keys = 'roots': expected names with sections"),
            ("level = INFO", "level = LOUD", "config.ini:8: [logger_root] level = 'LOUD': expected one of"),
            ("handlers = console", "handlers = file", "config.ini:9: [logger_root] handlers = 'file': expected names"),
            ("class = StreamHandler", "", "config.ini:10: [handler_console]: expected the option class"),
            ("[formatters]\nkeys = plain", "", "config.ini: [formatters] keys: expected a list of names"),
        ],
    )
    def test_what_logging_config_would_choke_on_is_a_problem(self, old: str, new: str, problem: str) -> None:
        assert any(found.startswith(problem) for found in problems(self.FILE.replace(old, new)))

    def test_without_loggers_they_are_not_used(self) -> None:
        assert read("[handler_x]\n").warnings == (
            "config.ini:1: [handler_x] is not used, as there is no section [loggers]",
        )


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


class TestSecrets:
    S = "s3cret"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("amqp://u:s3cret@h:5672/v", "amqp://u:***@h:5672/v"),
            ("amqp://u:s3/cr:et@x@h/v", "amqp://u:***@h/v"),
            ("amqp://:s3cret@h", "amqp://:***@h"),
            ("amqp://u:s3@h1,amqp://u:s3@h2", "amqp://u:***@h1,amqp://u:***@h2"),
            ("postgresql:///d?user=u&password=s3cret", "postgresql:///d?user=u&password=***"),
            ("host=h password='s3 cret' dbname=d", "host=h password=*** dbname=d"),
            ("amqp://u@h:5672/v", "amqp://u@h:5672/v"),
            ("amqp://[::1]:5672/%2F", "amqp://[::1]:5672/%2F"),
            ("sqlite:///dir/file", "sqlite:///dir/file"),
        ],
    )
    def test_passwords_in_urls_are_masked_and_nothing_else(self, url: str, shown: str) -> None:
        assert mask_url(url) == shown

    @pytest.mark.parametrize(
        "name",
        ["password", "passwd", "db_password", "PASSWD", "client_secret", "api_token", "ssl_key_file", "passphrase",
         "api_key", "aws_access_key_id", "password_file", "pasword"],
    )  # fmt: skip
    def test_secret_names(self, name: str) -> None:
        assert mask(name, self.S) == "***"
        assert mask_pairs(((name, self.S), ("other", "x"))) == {name: "***", "other": "x"}

    def test_repr_shows_none(self) -> None:
        config = read(f"[amqp]\npasswd = {self.S}\n[worker1]\ntoken = {self.S}\nenvironment = API_TOKEN={self.S}\n")

        assert self.S in config.url
        assert self.S not in repr(config) + str(config) + repr(config.groups)

    @pytest.mark.parametrize(
        "text",
        [
            "[amqp]\npasswd = s3cret\x01\n",
            "[amqp]\npasswd s3cret\n",
            "[amqp]\npasswd s3cret=x\n",
            "[amqp]\npasswd =\ns3cret\n",
            "[amqp]\npasword = s3cret\n",
            "[amqp]\npasswd = s3cret\npassword = s3cret\n",
            "[amqp]\nport = 1\n  passwd = s3cret s3cret\n",
            "[amqp]\nport =\n  passwd = s3cret s3cret\n",
            "[taskqueue]\nurl = htp://u:s3cret@h\n",
            "[taskqueue]\nurl = amqp://u:s3cret@h:x\n",
            "passwd = s3cret\n",
            "[worker1]\nenvironment = A_TOKEN='s3cret s3cret\n",
        ],
    )
    def test_no_problem_shows_one(self, text: str) -> None:
        assert self.S not in "\n".join(problems(text))

    def test_no_problem_with_the_urls_of_the_command_line_shows_one(self) -> None:
        assert self.S not in "\n".join(problems("", url="htp://u:s3cret@h"))

    def test_no_warning_shows_one(self, tmp_path: Path) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"[ampq]\npasswd = {self.S}\n[amqp]\npasswd={self.S}\n[taskqueue]\nurl = amqp://u:{self.S}@h\n")
        path.chmod(0o644)

        warnings = load(path, PLUGINS).warnings

        assert len(warnings) == 3 and self.S not in "\n".join(warnings)


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
            "config.ini: [taskqueue] user = 'x': there is no such user on this host",
            "config.ini: there is no user taskqueue-worker on this host: worker processes of groups without a user "
            "run as nobody; expected worker_user in [taskqueue]",
            "config.ini: [worker2_bifh2] user = 'bifh2': there is no such user on this host",
        )
        assert not_root == as_root[2:]

    def test_daemons_that_stay_root_are_told(self) -> None:
        [daemons] = check_users(read("", {}), root=True, exists=lambda _: False)

        assert "dispatcher and carrier run as root" in daemons


def example_options(text: str) -> dict[str, dict[str, str]]:
    """Section -> option -> default of the example file."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in text.partition("# Example")[0].splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            found[section] = {}
        elif line.startswith(";"):
            name, _, value = line[1:].partition("=")
            found[section][name.strip()] = value.strip()
    return found


class TestTheExampleFile:
    TEXT = (TOP / "config.ini.example").read_text()

    def test_it_has_every_option_with_its_default_and_no_other(self) -> None:
        tables = {"taskqueue": TASKQUEUE, "amqp": AMQP, "DEFAULT": WORKERS}

        assert example_options(self.TEXT) == {
            section: {option.name: option.default for option in table.values()} for section, table in tables.items()
        }

    def test_it_has_the_meaning_of_every_option_above_it(self) -> None:
        blocks = [block.splitlines() for block in self.TEXT.partition("# Example")[0].strip().split("\n\n")]
        comments = [(lines[-1], " ".join(line.removeprefix("# ") for line in lines[:-1])) for lines in blocks]

        for table in (TASKQUEUE, AMQP, WORKERS):
            for option in table.values():
                assert (f";{option.name} = {option.default}".strip(), option.meaning) in comments

    def test_as_it_stands_it_means_the_same_as_an_empty_file(self) -> None:
        assert read(self.TEXT) == read("")

    def test_with_its_options_it_means_the_same_as_an_empty_file(self) -> None:
        options = re.sub(r"(?m)^;(\w+ =)", r"\1", self.TEXT)

        config = read(options.replace("url =\n", ""))

        assert config.url == "amqp://guest:guest@localhost:5672/%2F"
        assert config == read("", url=config.url)

    def test_its_example_is_that_of_the_design(self) -> None:
        example = re.sub(r"(?m)^;", "", self.TEXT.partition("# Example")[2].partition("\n\n")[2])

        assert read(example) == read(DESIGN)


def test_the_documentation_names_every_option_with_its_default() -> None:
    text = (TOP / "docs/configuration.md").read_text()

    for table in (TASKQUEUE, AMQP, WORKERS):
        for option in table.values():
            assert f"| `{option.name}` | {f'`{option.default}`' if option.default else 'empty'} |" in text
            assert f"`{option.alias or option.name}`" in text


class TestCheckConfig:
    def check(self, path: Path, *, json: bool = False, url: str = "") -> int:
        return check_config.run(argparse.Namespace(config=str(path), url=url, json=json), PLUGINS)

    def test_it_is_a_command_that_runs_itself(self) -> None:
        parser = argparse.ArgumentParser()
        check_config.add_parser(parser.add_subparsers())

        assert parser.parse_args(["check-config"]).run is check_config.run

    def test_it_prints_the_plan_without_secrets(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"[amqp]\npasswd = s3cret\n{DESIGN}[worker3]\napi_token = s3cret\nshape = round\n[absent]\n")

        status = self.check(path)

        out, err = capsys.readouterr()
        assert status == 0 and "s3cret" not in out + err
        assert "amqp://guest:***@localhost:5672/%2F" in out
        assert re.search(r"(?m)^GROUP +TYPE +PROCESSES +USER +QUEUE +SETTINGS$", out)
        assert re.search(r"(?m)^worker2_bifh1 +worker2 +1 +bifh1 +worker_worker2$", out)
        assert re.search(r"(?m)^worker3 +worker3 +1 .* worker_worker3 +api_token = '\*\*\*', shape = 'round'$", out)
        assert re.search(r"(?m)^absent +absent +0 \(no plugin\)", out)
        assert "[absent]: no plugin for this worker type" in err

    def test_it_prints_every_problem_and_exits_with_6(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text("[worker1]\nworkers = -1\nretries = x\n")

        status = self.check(path)

        out, err = capsys.readouterr()
        assert status == 6 and out == ""
        assert [line.partition(": [")[0] for line in err.splitlines()] == [f"problem: {path}:2", f"problem: {path}:3"]

    def test_as_json_it_is_one_object_a_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"{DESIGN}[absent]\ntoken = s3cret\nenvironment = A_TOKEN=s3cret\n")

        status = self.check(path, json=True, url="amqp://u:s3cret@h")
        out = capsys.readouterr().out
        objects = [json.loads(line) for line in out.splitlines()]
        path.write_text("x")
        wrong = self.check(path, json=True)
        problem = json.loads(capsys.readouterr().out)

        assert status == 0 and "s3cret" not in out
        assert {found["kind"] for found in objects} == {"warning", "options", "group"}
        [bifh1] = [found for found in objects if found.get("group") == "worker2_bifh1"]
        assert (bifh1["processes"], bifh1["user"], bifh1["queue"]) == (1, "bifh1", "worker_worker2")
        assert wrong == 6 and problem["kind"] == "problem"

    def test_a_missing_file_exits_with_6(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path / "nothing.ini") == 6
        assert "no such file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_text("")
    path.chmod(0)

    with pytest.raises(ConfigError, match=r"can't be read: Permission denied"):
        load(path, PLUGINS)
