"""The configuration: what is said about files that are wrong, or odd."""

from __future__ import annotations

import pytest
from configurations import DESIGN, PATH, PLUGINS, problems, read

from taskqueue.config import Group, parse


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

    @pytest.mark.parametrize(
        "line",
        [
            "default_workitem_type = application/json; charset=utf-8",
            "default_workitem_type = application json",
            "workitem_type_map = text/json",
            "workitem_type_map = text/json = ",
            "workitem_type_map = a b = application/json",
            "workitem_type_map = text/json: application/json",
            "workitem_type_map = a=text/plain, b=application/json=c",
            "workitem_type_map = a=text/plain, A=application/json",
        ],
    )
    def test_content_types_that_are_none_are_a_problem(self, line: str) -> None:
        [problem] = problems(f"[taskqueue]\n{line}\n")

        assert problem.startswith(f"config.ini:2: [taskqueue] {line.partition(' ')[0]} = ")
        assert ": expected " in problem

    def test_a_format_that_is_not_installed_is_a_problem_with_the_one_that_was_meant(self) -> None:
        default = "[taskqueue]\ndefault_workitem_type = "
        map = "[taskqueue]\nworkitem_type_map = "

        assert problems(f"{default}application/jsno\n{map[12:]}a = text/plane, b = x/y, c = x/y, d = text/plain\n") == (
            "config.ini:2: [taskqueue] default_workitem_type = 'application/jsno': no format for application/jsno is "
            "installed here; did you mean application/json?",
            "config.ini:3: [taskqueue] workitem_type_map = 'a = text/plane, b = x/y, c = x/y, d = text/plain': "
            "no format for text/plane is installed here; did you mean text/plain?",
            "config.ini:3: [taskqueue] workitem_type_map = 'a = text/plane, b = x/y, c = x/y, d = text/plain': "
            "no format for x/y is installed here; there are application/json, application/x-own, text/plain",
        )

    def test_programs_that_open_no_message_need_no_format(self) -> None:
        text = "[taskqueue]\ndefault_workitem_type = x/y\n"

        assert parse(text, PATH, PLUGINS).default_workitem_type == "x/y"

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


class TestTimeLimits:
    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("[worker1]\ntime_limit = 5\nsoft_time_limit = 5\n", "3: [worker1] soft_time_limit = '5'"),
            ("[DEFAULT]\nsoft_time_limit = 60\n[worker1]\ntime_limit = 5\n", "4: [worker1] time_limit = '5'"),
        ],
    )
    def test_a_soft_one_must_come_before_the_other_one(self, text: str, place: str) -> None:
        (problem,) = problems(text)
        assert problem.startswith(f"config.ini:{place}: expected a soft_time_limit below time_limit, and for worker1")

    def test_a_soft_one_alone_is_right(self) -> None:
        assert read("[worker1]\nsoft_time_limit = 5\n").groups[0].soft_time_limit == 5.0


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
