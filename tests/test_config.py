"""The configuration: what files mean."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from configurations import DESIGN, PATH, PLUGINS, group, problems, read

from taskqueue.config import Config, Group


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
            cancel_timeout=10.0,
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
            default_workitem_type="",
            workitem_type_map=(),
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
            ("cancel_timeout", "0", 0.0),
            ("results_routing_key", "", ""),
            ("results_routing_key", "ruote_workitems", "ruote_workitems"),
            ("dead_letters", "Off", False),
            ("dead_letters", "yes", True),
            ("threads", "20", 20),
            ("concurrency", "1000", 1000),
            ("max_tasks", "0", 0),
            ("max_memory", "0", 0),
            ("max_memory", "512M", 512 << 20),
            ("memory_limit", "2g", 2 << 30),
            ("soft_time_limit", "30s", 30.0),
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
            ("default_workitem_type", "Text/Plain", "text/plain"),
            ("default_workitem_type", "", ""),
            ("workitem_type_map", "", ()),
            (
                "workitem_type_map",
                "text/json=application/json,\n  Json = application/x-own,",
                (("json", "application/x-own"), ("text/json", "application/json")),
            ),
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
