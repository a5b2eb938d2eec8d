"""Installed on a Debian without systemd: the services as init scripts run them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from configurations import DESIGN
from machine import Machine, policy
from operating import DAEMONS, add_egg, add_module, drain, pip, publish, remove_egg, result, send, service
from packages import NAMES
from system import until

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]

PASSWORD = "sesame/ouvre:toi@"
HEARD = "/var/tmp/heard"
ASKING = f"""\
import os, socket
from taskqueue.process.protocol import Kind, pack
from taskqueue.worker import BaseWorker

class Worker(BaseWorker):
    def handle_task(self, body):
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        (number,) = [n for n in numbers if n > 2 and os.path.exists(f"/proc/self/fd/{{n}}")
                     and os.readlink(f"/proc/self/fd/{{n}}").startswith("socket:")]
        carrier = socket.socket(fileno=os.dup(number))
        with open("{HEARD}", "ab", buffering=0) as file:
            file.write(body.encode() + b"\\n")
            carrier.sendall(pack(Kind[body], {{"pid": os.getpid()}}))
            while True:  # until it is killed for that
                file.write(carrier.recv(1 << 20) + b"\\n")
"""
WORKER1 = """\
import os
from taskqueue.worker import BaseWorker

class Worker(BaseWorker):
    def handle_task(self, body):
        return f"{body} by {os.getuid()}"
"""


def log(machine: Machine) -> str:
    """Everything that was logged."""
    return machine.path("/var/log/syslog").read_text()


def test_users_and_files_are_as_documented(machine: Machine) -> None:
    for user in ("taskqueue", "taskqueue-worker"):
        assert machine.run("getent", "passwd", user).split(":")[6] == "/usr/sbin/nologin\n"
        assert machine.run("id", "--groups", "--name", user) == f"{user}\n"
    owned = {
        "/etc/taskqueue/config.ini": "root:taskqueue 640",
        "/etc/taskqueue/conf.d": "root:root 755",
        "/var/lib/taskqueue": "taskqueue:taskqueue 750",
        "/run/taskqueue-dispatcher": "taskqueue:taskqueue 755",
        "/run/taskqueue-workerpool": "root:root 755",
    }
    for path, expected in owned.items():
        assert machine.run("stat", "--format=%U:%G %a", path).strip() == expected, path
    for page in ("taskqueue", "taskqueue-dispatcher", "taskqueue-workerpool", "taskqueue.ini"):
        assert "taskqueue" in machine.run("man", "--where", page)
    assert "taskqueue/__pycache__/worker.cpython-311.pyc" in machine.run(
        "find", "/usr/lib/python3/dist-packages/taskqueue"
    )


def test_each_process_runs_as_its_user(machine: Machine) -> None:
    expected = {
        "root": "workerpool", "taskqueue": "(dispatcher|carrier)", "taskqueue-worker": "worker filestat",
    }  # fmt: skip
    pattern = "|".join(f"{user} +taskqueue: {title}" for user, title in expected.items())

    def running() -> list[str]:
        return [line for line in machine.run("ps", "-eo", "user:20,args").splitlines() if "taskqueue: " in line]

    until(lambda: len(running()) == 4, "the four processes")
    assert [line for line in running() if re.match(pattern, line) is None] == []


@pytest.mark.parametrize("daemon", DAEMONS)
def test_init_actions_have_the_exit_statuses_of_the_lsb(machine: Machine, daemon: str) -> None:
    pid = machine.path(f"/run/taskqueue-{daemon}/{daemon}.pid")

    for action, status in (
        ("status", 0), ("start", 0), ("status", 0),
        ("reload", 0), ("force-reload", 0), ("status", 0),
        ("stop", 0), ("status", 3), ("stop", 0), ("try-restart", 0), ("status", 3),
        ("reload", 7), ("force-reload", 7),
        ("restart", 0), ("status", 0),
    ):  # fmt: skip
        service(machine, daemon, action, status)
    first = pid.read_text()
    service(machine, daemon, "try-restart")
    second = pid.read_text()
    service(machine, daemon, "start")

    assert first != second == pid.read_text()
    service(machine, daemon, "bogus", 2)
    machine.run("setpriv", "--reuid=daemon", f"/etc/init.d/python-taskqueue-{daemon}", "restart", status=4)
    service(machine, daemon, "status")
    machine.run("kill", "-KILL", second.strip())
    until(lambda: machine.status(f"/etc/init.d/python-taskqueue-{daemon}", "status") == 1, "dead, with its pid file")
    service(machine, daemon, "start")
    service(machine, daemon, "status")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_start_with_a_wrong_configuration_fails_and_says_what_is_wrong(machine: Machine, daemon: str) -> None:
    service(machine, daemon, "stop")
    machine.write("/etc/taskqueue/config.ini", "[taskqueue]\nlog_level = loud\n")

    said = service(machine, daemon, "start", 6)

    assert "/etc/taskqueue/config.ini" in said and "log_level" in said and "loud" in said
    service(machine, daemon, "status", 3)


def test_a_wrong_configuration_changes_nothing_in_what_runs(machine: Machine) -> None:
    machine.write("/etc/taskqueue/config.ini", "[DEFAULT]\nworkers = several\n")

    for daemon in DAEMONS:
        service(machine, daemon, "reload", None)

    drain(machine)
    publish(machine, "filestat /etc/hostname")
    assert json.loads(result(machine))["path"] == "/etc/hostname"


def test_an_edited_configuration_takes_effect_by_a_reload(machine: Machine) -> None:
    machine.write("/etc/taskqueue/config.ini", "[filestat]\nworkers = 3\n")

    service(machine, "workerpool", "reload")

    until(lambda: len(machine.pids("^taskqueue: worker filestat")) == 3, "three worker processes")
    assert machine.run("stat", "--format=%U:%G %a", "/etc/taskqueue/config.ini").strip() == "root:taskqueue 640"


def test_what_a_package_changes_in_conf_d_takes_effect_by_itself(machine: Machine) -> None:
    """By a trigger of dpkg: it is as if another package had brought the file."""
    file = "/etc/taskqueue/conf.d/filestat.ini"
    machine.write(file, "[filestat]\nworkers = 3\n")

    machine.run("dpkg-trigger", "--by-package=python-taskqueue-extra", "/etc/taskqueue/conf.d")
    machine.run("dpkg", "--triggers-only", "--pending")

    until(lambda: len(machine.pids("^taskqueue: worker filestat")) == 3, "three worker processes")
    machine.run("rm", file)


def test_services_start_without_their_broker_and_work_once_it_is_there(machine: Machine) -> None:
    for daemon in DAEMONS:
        service(machine, daemon, "stop")
    machine.run("/etc/init.d/rabbitmq-server", "stop")

    for daemon in DAEMONS:
        service(machine, daemon, "start")
        service(machine, daemon, "status")
    machine.run("/etc/init.d/rabbitmq-server", "start")

    assert json.loads(send(machine, "filestat", "/etc/hostname"))["path"] == "/etc/hostname"


def test_they_start_and_reload_with_a_zipped_egg_on_the_path(machine: Machine) -> None:
    """Which once killed them without a word: the background closes what the metadata finder holds open."""
    add_egg(machine)

    for daemon in DAEMONS:
        for action in ("restart", "reload", "status"):
            service(machine, daemon, action)

    assert "zipped.py" in send(machine, "zipped", "")
    remove_egg(machine)
    until(lambda: not machine.pids("^taskqueue: worker zipped"), "the end of its worker")
    for daemon in DAEMONS:
        service(machine, daemon, "status")


def test_the_configuration_of_the_design_runs_each_worker_as_its_user(
    machine: Machine, wheels: dict[str, Path]
) -> None:
    for user in ("bifh1", "bifh2"):
        machine.run(
            "adduser", "--quiet", "--system", "--group", "--no-create-home", "--home", f"/nonexistent/{user}", user
        )
    pip(machine, wheels["worker2"])
    add_module(machine, "worker1", WORKER1, {"worker1": "worker1:Worker.factory"})
    machine.write("/etc/taskqueue/config.ini", DESIGN)

    service(machine, "workerpool", "restart")
    users = {name: machine.run("id", "-u", name).strip() for name in ("taskqueue-worker", "bifh1", "bifh2")}

    def workers() -> list[list[str]]:
        listed = machine.run("ps", "-eo", "uid,args").splitlines()
        return sorted(line.split() for line in listed if "taskqueue: worker " in line)

    expected = sorted(
        [users[user], "taskqueue:", "worker", *title.split(), "idle"]
        for user, title in (
            *[("taskqueue-worker", "worker1")] * 3,
            ("bifh1", "worker2 [bifh1]"),
            ("bifh2", "worker2 [bifh2]"),
            ("taskqueue-worker", "filestat"),
        )
    )
    until(lambda: workers() == expected, f"{expected}")
    assert send(machine, "worker1", "done").strip() == f"done by {users['taskqueue-worker']}"
    assert str(json.loads(send(machine, "worker2", "done"))["uid"]) in (users["bifh1"], users["bifh2"])


def test_a_plugin_can_not_have_the_brokers_password(machine: Machine, wheels: dict[str, Path]) -> None:
    machine.run("rabbitmqctl", "add_user", "tq", PASSWORD)
    machine.run("rabbitmqctl", "set_permissions", "tq", ".*", ".*", ".*")
    pip(machine, wheels["inspect"])
    machine.write("/etc/taskqueue/config.ini", f"[amqp]\nuser = tq\npassword = {PASSWORD}\n[asking]\nmax_crashes = 1\n")
    for daemon in DAEMONS:
        service(machine, daemon, "restart")
    until(lambda: machine.pids("^taskqueue: worker inspect idle"), "the worker inspect")
    others = [pid for pid in machine.pids("taskqueue: ") if pid not in machine.pids("^taskqueue: worker inspect")]
    assert len(others) == 4
    middle = len(PASSWORD) // 2
    asked = {
        "files": ["/etc/taskqueue/config.ini", "/etc/shadow"],
        "texts": {"password": [PASSWORD[:middle], PASSWORD[middle:]]},
        "pids": others,
    }

    found = json.loads(send(machine, "inspect", json.dumps(asked), "--content-type", "application/json"))

    worker = int(machine.run("id", "-u", "taskqueue-worker"))
    assert found["uids"] == [worker] * 3
    assert found["capabilities"] == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapAmb": 0}
    assert found["files"] == dict.fromkeys(asked["files"], "PermissionError")
    assert found["own memory"] == {"password": False}
    assert PASSWORD not in json.dumps(found["environment"])
    # Those of its own user it may look into; there is nothing to be found.
    for what, seen in found["others"].items():
        pid, _, file = what.partition("/")
        own = machine.run("stat", "--format=%u", f"/proc/{pid}").strip() == str(worker)
        assert seen in ([[], "OSError"] if file == "cmdline" or own else ["PermissionError"]), what
        if file == "mem" and not own:
            assert found["traced"][pid] == "EPERM", what
    sockets = [target for target in found["descriptors"].values() if target.startswith("socket:")]
    assert len(sockets) == 1
    add_module(machine, "asking", ASKING, {"asking": "asking:Worker"})
    machine.run("install", "-m", "0666", "/dev/null", HEARD)
    until(lambda: machine.pids("^taskqueue: worker asking idle"), "the worker asking")
    for kind in ("CONFIG", "STATE", "HELLO", "PING"):
        machine.run("taskqueue", "send", "--wait", "--timeout", "60", "asking", kind, status=1)
    heard = machine.path(HEARD).read_bytes()
    assert {b"CONFIG", b"STATE", b"HELLO", b"PING"} <= set(heard.splitlines())
    assert not any(half.encode() in heard for half in (PASSWORD[:middle], PASSWORD[middle:]))
    assert PASSWORD not in log(machine)
    assert "PermissionError" in machine.run(
        "setpriv", "--reuid=taskqueue-worker", "--regid=taskqueue-worker", "--clear-groups",
        "taskqueue", "check-config", status=None,
    ).replace("Permission denied", "PermissionError")  # fmt: skip


def test_nothing_is_started_where_the_administrator_forbids_it(
    debian: Callable[..., object], files: dict[str, Path]
) -> None:
    with debian("forbidden") as machine:  # type: ignore[attr-defined]
        policy(machine.path("/"), 101)

        machine.install(*(files[name] for name in NAMES))

        assert machine.pids("taskqueue-(dispatcher|workerpool)|taskqueue: ") == []
        for daemon in DAEMONS:
            service(machine, daemon, "status", 3)
