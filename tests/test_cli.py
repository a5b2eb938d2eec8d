"""The command `taskqueue`, as its users run it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pytest
from installations import Installation
from servers import RabbitMQ, free_ports
from system import System

ECHO = "[DEFAULT]\nworkers = 0\n[echo]\nworkers = 1\n[fail]\nworkers = 1\n[worker1]\nworkers = 1\n"


@pytest.fixture
def offline(installation: Installation) -> Iterator[System]:
    """No broker: nobody listens at its URL."""
    (port,) = free_ports(1)
    with System(installation, f"amqp://someone:{RabbitMQ.password.replace('/', '%2F')}127.0.0.1:{port}/") as system:
        yield system


class TestSend:
    def test_it_prints_the_ids_of_what_was_stored(self, system: System) -> None:
        config = system.config()
        one = system.run("send", "echo", "hello world", "-c", config)
        named = system.run("send", "echo", "x", "--id", "mine", "--reference", "order:4711", "-c", config, "--json")
        many = system.run(
            "send", "echo", "-", "--count", "3", "--content-type", "application/json", "-c", config, input=b"[1]"
        )
        by_url = system.run("send", "echo", "--url", system.url)
        by_environment = system.run("send", "echo", TASKQUEUE_URL=system.url)

        for done in (one, named, many, by_url, by_environment):
            assert (done.returncode, done.stderr) == (0, b"")
        assert json.loads(named.stdout) == {"id": "mine"}
        messages = system.collect("worker_echo", 7)
        ids = [message.properties.message_id for message in messages]
        assert ids[0] == one.stdout.decode().strip()
        assert ids[1] == "mine"
        assert ids[2:5] == many.stdout.decode().split() and len(set(ids)) == 7
        assert [message.body for message in messages] == [b"hello world", b"x", b"[1]", b"[1]", b"[1]", b"", b""]
        assert messages[0].headers["worker_type"] == "echo"
        assert messages[1].headers["reference"] == "order:4711"
        assert messages[0].properties.content_type == "text/plain"
        assert messages[2].properties.content_type == "application/json"
        assert abs(messages[0].properties.timestamp - time.time()) < 3600

    def test_it_waits_for_results(self, system: System) -> None:
        config = system.config(ECHO)
        pool = system.workerpool(config, ready=3)  # and no dispatcher

        done = system.run("send", "echo", "gr\u00fc\u00dfe", "--wait", "-c", config)
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "gr\u00fc\u00dfe\n", b"")

        done = system.run(
            "send", "echo", '{"a": [1]}', "--content-type", "application/json", "--wait", "--json", "-c", config
        )
        (shown,) = map(json.loads, done.stdout.splitlines())
        assert (shown["status"], shown["result"], done.returncode) == ("succeeded", {"a": [1]}, 0)

        done = system.run(
            "send", "worker1", "bytes", "--content-type", "application/x-own", "--wait", "--count", "3", "-c", config
        )
        assert (done.returncode, done.stdout) == (0, b"BYTES\n" * 3)

        done = system.run("send", "fail", "on purpose", "--wait", "--id", "mine", "-c", config)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == "taskqueue: workitem mine failed: ValueError: on purpose\n"

        done = system.run("send", "fail", "on purpose", "--wait", "--json", "-c", config)
        shown = json.loads(done.stdout)
        assert (shown["status"], shown["error"], done.returncode) == ("failed", "ValueError: on purpose", 1)
        assert "Traceback" in shown["traceback"]
        pool.stop()

    def test_it_waits_no_longer_than_it_should(self, system: System) -> None:
        done = system.run("send", "echo", "x", "--wait", "--timeout", "0.5", "-c", system.config())
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"taskqueue: no result of 1 workitems within 0.5 s\n"

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["../x"], "'../x' can't be a worker type"),
            (["x" * 129], "can't be a worker type"),
            (["echo", "x", "--count", "0"], "--count: expected a number from 1"),
            (["echo", "x", "--count", "many"], "invalid int value"),
            (["echo", "x", "--count", "2", "--id", "a"], "--id goes with one workitem only"),
            (["echo", "x", "--id", "a" * 256], "--id"),
            (["echo", "x", "--timeout", "-1"], "--timeout"),
            (["echo", "x", "--timeout", "1"], "--timeout"),
            ([], "required"),
        ],
    )
    def test_wrong_usage_is_said_before_anything_is_done(
        self, offline: System, arguments: list[str], expected: str
    ) -> None:
        done = offline.run("send", *arguments)
        assert done.returncode == 2
        assert expected in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()

    def test_a_broker_that_is_down_is_one_line_without_the_password(self, offline: System) -> None:
        done = offline.run("send", "echo", "x", "-c", offline.config())
        assert (done.returncode, done.stdout) == (1, b"")
        text = done.stderr.decode()
        assert text.startswith("taskqueue: ") and text.count("\n") == 1
        assert "Connection refused" in text and "127.0.0.1" in text
        assert "sesame" not in text

    def test_it_finds_the_password_in_its_file(self, system: System, rabbitmq: RabbitMQ) -> None:
        vhost = unquote(urlsplit(system.url).path.removeprefix("/"))
        config = system.directory / "own.ini"
        config.write_text(
            f"[amqp]\nhost = 127.0.0.1\nport = {rabbitmq.port}\nvhost = {vhost}\nuser = {rabbitmq.user}\n"
            "password_file = password\n"
        )

        missing = system.run("send", "echo", "x", "-c", config)
        (system.directory / "password").write_text(f"{rabbitmq.password}\n")
        sent = system.run("send", "echo", "x", "-c", config)
        system.wait_queue("worker_echo", 1)
        dispatcher = system.dispatcher(config, "-v")
        dispatcher.logged("connected to")
        dispatcher.stop()

        assert (missing.returncode, missing.stdout) == (6, b"")
        assert f"password_file: {system.directory}/password there is no such file" in missing.stderr.decode()
        assert (sent.returncode, sent.stderr) == (0, b"")
        assert rabbitmq.password not in dispatcher.log

    def test_a_wrong_password_is_one_line_without_it(self, system: System, rabbitmq: RabbitMQ) -> None:
        url = rabbitmq.url(password="open-sesame")
        done = system.run("send", "echo", "x", "--url", url)
        text = done.stderr.decode()
        assert (done.returncode, text.count("\n")) == (1, 1)
        assert "refused user or password" in text and "sesame" not in text


@pytest.mark.parametrize(
    "command", [["send", "echo"], ["dispatcher", "-f"], ["workerpool", "-f"], ["check-config"], ["config", "show"]]
)
def test_a_wrong_configuration_is_exit_status_6_with_file_and_line(offline: System, command: list[str]) -> None:
    config = offline.config("[echo]\nworkers = many\n")
    missing = offline.directory / "missing.ini"

    done = offline.run(*command, "-c", config)
    gone = offline.run(*command, "-c", missing)

    assert (done.returncode, gone.returncode) == (6, 6)
    assert f"{config}:5: [echo] workers" in done.stderr.decode()
    assert str(missing) in gone.stderr.decode()
    assert "Traceback" not in (done.stderr + gone.stderr).decode()


def test_check_config_shows_the_plan(offline: System) -> None:
    config = offline.config("[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\napi_token = hidden-thing\n")

    done = offline.run("check-config", "-c", config)
    lines = offline.run("check-config", "--json", "-c", config)

    assert (done.returncode, lines.returncode) == (0, 0)
    assert "worker_echo" in done.stdout.decode()
    groups = [shown for shown in map(json.loads, lines.stdout.splitlines()) if shown.get("kind") == "group"]
    assert {group["group"]: group["processes"] for group in groups}["echo"] == 2
    for output in (done.stdout, done.stderr, lines.stdout, lines.stderr):
        assert b"sesame" not in output and b"hidden-thing" not in output


def test_config_show_shows_what_took_effect_and_no_secret(offline: System) -> None:
    config = offline.config("[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\napi_token = hidden-thing\n")

    short = offline.run("config", "show", "-c", config)
    full = offline.run("config", "show", "--effective", "-c", config)
    lines = offline.run("config", "show", "--json", TASKQUEUE_CONFIG=str(config), TASKQUEUE_URL="sqlite:///x")
    nothing = offline.run("config")

    assert (short.returncode, full.returncode, lines.returncode, nothing.returncode) == (0, 0, 0, 2)
    assert "max_types" in full.stdout.decode() and "max_types" not in short.stdout.decode()
    assert "[inspect]" in full.stdout.decode() and "[inspect]" not in short.stdout.decode()
    origins = {
        (shown["section"], shown["option"]): shown["origin"] for shown in map(json.loads, lines.stdout.splitlines())
    }
    assert (origins["taskqueue", "url"], origins["echo", "workers"]) == ("TASKQUEUE_URL", "file")
    for done in (short, full, lines):
        assert done.stderr == b""
        assert b"sesame" not in done.stdout and b"hidden-thing" not in done.stdout


def test_the_command_says_what_there_is(offline: System) -> None:
    version, help, nothing = offline.run("--version"), offline.run("--help"), offline.run()
    assert version.stdout.startswith(b"taskqueue ")
    for command in ("send", "dead", "demo", "check-config", "config", "dispatcher", "workerpool"):
        assert command in help.stdout.decode()
    assert nothing.returncode == 2
