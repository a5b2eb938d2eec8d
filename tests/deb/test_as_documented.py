"""docs/install.md, its commands as they stand: on several hosts, and with pip; before anything else is installed."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import CABLE, Machine
from operating import drain, publish, result, send, status
from packages import NOT_SOURCE, TOP
from system import until
from test_readme import commands

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

INSTALL = (TOP / "docs/install.md").read_text()
BROKER = "192.0.2.1 broker.example.org\n"
EMPTY = 2  # the exit status of amqp-get where there is nothing in a queue, as opposed to no queue
YES = 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'  # RabbitMQ is there, and no network


def shell(machine: Machine, *lines: str, **environment: str) -> str:
    """What commands say, in the checkout of the machine."""
    return machine.run("sh", "-euc", "\n".join(["cd /root/checkout", *lines]), **environment)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A directory with what the project needs from the index of Python packages."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    needed = [*project["build-system"]["requires"], "wheel", *project["project"]["dependencies"]]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", tmp_path, *needed], check=True)
    return tmp_path


@pytest.fixture
def second(debian: Callable[..., contextlib.AbstractContextManager[Machine]], bare: Machine) -> Iterator[Machine]:
    """A host beside the broker's, with a network between them, on which the broker's has a name."""
    with debian("second") as second:
        bare.join(second)
        for machine in (bare, second):
            machine.write("/etc/hosts", machine.path("/etc/hosts").read_text() + BROKER)
            machine.write("/etc/apt/apt.conf.d/90yes", YES)
        second.run("/etc/init.d/inetutils-syslogd", "start")
        yield second
        print(second.run("tail", "-n", "200", "/var/log/syslog"))


def test_with_pip(bare: Machine, index: Path) -> None:
    *lines, dispatcher, workerpool = commands(INSTALL, "With pip")
    shutil.copytree(TOP, bare.path("/root/checkout"), ignore=shutil.ignore_patterns(*NOT_SOURCE))
    shutil.copytree(index, bare.path("/wheels"))

    shell(bare, *lines, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")

    with bare.running(*dispatcher.split()) as first, bare.running(*workerpool.split()) as second:
        until(lambda: bare.pids("^taskqueue: worker filestat idle"), "the worker filestat")
        until(lambda: bare.status("amqp-get", "--queue", "taskqueue") == EMPTY, "the dispatcher's queue")
        publish(bare, "filestat /etc/hostname")
        assert json.loads(result(bare))["path"] == "/etc/hostname"
        for title, user in (
            ("workerpool", "root"),
            ("(dispatcher|carrier)", "taskqueue"),
            ("worker ", "taskqueue-worker"),
        ):
            for pid in bare.pids(f"^taskqueue: {title}"):
                assert bare.run("stat", "--format=%U", f"/proc/{pid}").strip() == user
        bare.run("kill", *bare.pids("^taskqueue: (dispatcher|workerpool)"))
        assert (first.wait(60), second.wait(60)) == (0, 0)
    for user in ("taskqueue", "taskqueue-worker"):
        bare.run("deluser", "--quiet", user)
    bare.run("rm", "--recursive", "/opt/taskqueue", "/etc/taskqueue", "/root/checkout")


def test_on_several_hosts(bare: Machine, second: Machine, files: dict[str, Path], example: Path) -> None:
    lines = commands(INSTALL, "Several hosts")
    said = lines.index("[amqp]")
    *first_host, other_host = lines[:said]
    *config, take = lines[said:]
    for machine in (bare, second):
        machine.path("/root/checkout/build/deb").mkdir(parents=True)
        for file in files.values():
            shutil.copy(file, machine.path("/root/checkout/build/deb"))

    shell(bare, *first_host)
    shell(second, other_host)
    second.install(example)
    for machine in (bare, second):
        machine.write("/etc/taskqueue/config.ini", "\n".join([*config, "heartbeat = 1", ""]))
        shell(machine, take)

    until(lambda: second.pids("^taskqueue: worker wordcount idle"), "the worker wordcount")
    assert json.loads(send(bare, "wordcount", "to be or not to be")) == {"to": 2, "be": 2, "or": 1}
    assert json.loads(send(second, "wordcount", "be")) == {"be": 1}
    assert bare.pids("^taskqueue: (workerpool|worker)") == second.pids("^taskqueue: dispatcher") == []

    second.ip("link", "set", CABLE, "down")
    until(lambda: status(second, "workerpool")[0]["state"] == "degraded", "the loss of the link")
    drain(bare)
    publish(bare, "wordcount still")
    second.ip("link", "set", CABLE, "up")

    assert json.loads(result(bare)) == {"still": 1}
    until(lambda: status(second, "workerpool")[0]["state"] == "running", "the link")
    assert json.loads(send(bare, "wordcount", "again")) == {"again": 1}
    bare.run("apt-get", "purge", "--yes", *(f"python-taskqueue-{part}" for part in ("common", "dispatcher")))
    bare.run("rabbitmqctl", "delete_user", "taskqueue")
    for command in (["delete_vhost", "/"], ["add_vhost", "/"], ["set_permissions", "guest", ".*", ".*", ".*"]):
        bare.run("rabbitmqctl", *command)  # with all queues: the next test sees a broker that is new
