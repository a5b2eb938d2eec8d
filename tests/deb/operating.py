"""What an operator does with an installed system, and a producer beside it."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import MODULES, Machine
from system import until

DAEMONS = ("dispatcher", "workerpool")
EGG = "zipped-1.0-py3.11.egg"
EGG_MODULE = """\
from taskqueue.worker import BaseWorker

class Worker(BaseWorker):
    def handle_task(self, body):
        return __file__
"""
PRODUCER = """\
import pika, select, sys
connection = pika.BlockingConnection(pika.URLParameters("amqp://localhost"))
channel = connection.channel()
channel.confirm_delivery()
count = 0
while not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:  # until that is closed
    own = pika.BasicProperties(content_type="text/plain", message_id=str(count), delivery_mode=2)
    channel.basic_publish("", "taskqueue", b"record %d" % count, own, mandatory=True)
    count += 1
print(count)
"""
CONSUMER = """\
import json, sys, time, pika
wanted, deadline = set(json.loads(sys.argv[1])), time.monotonic() + float(sys.argv[2])
channel = pika.BlockingConnection(pika.URLParameters("amqp://localhost")).channel()
found = []
for method, properties, body in channel.consume("results", auto_ack=True, inactivity_timeout=0.5):
    if method is not None and properties.correlation_id in wanted:
        found.append([properties.correlation_id, properties.headers["status"], body.decode()])
    if (method is None and len(found) >= len(wanted)) or time.monotonic() > deadline:
        break
print(json.dumps(found))
"""


def service(machine: Machine, daemon: str, action: str, status: int | None = 0) -> str:
    """What an action of an init script says; `status` is its exit status."""
    return machine.run(f"/etc/init.d/python-taskqueue-{daemon}", action, status=status)


def manager(machine: Machine) -> int:
    """The pid of the worker manager."""
    return int(machine.path("/run/taskqueue-workerpool/workerpool.pid").read_text())


def workers(machine: Machine, type: str) -> list[int]:
    """The worker processes of a type, ready or busy."""
    return machine.pids(rf"^taskqueue: worker {type}\b")


def publish(machine: Machine, body: str, *, content_type: str = "text/plain") -> None:
    """Publish to the queue taskqueue, by amqp-tools."""
    machine.run("amqp-publish", "--routing-key", "taskqueue", "--content-type", content_type, "--body", body)


def result(machine: Machine) -> str:
    """The next result in the queue `results`, as amqp-tools take it."""

    def taken() -> str:
        with contextlib.suppress(AssertionError):  # empty, or not there yet
            return machine.run("amqp-get", "--queue", "results")
        return ""

    return until(taken, "a result")


def drain(machine: Machine) -> None:
    """Forget the results that tests before this one have left."""
    while machine.status("amqp-get", "--queue", "results") == 0:
        pass


def results(machine: Machine, *ids: str, timeout: float = 60) -> dict[str, tuple[str, str]]:
    """The results of workitems: id to status and body.  Fails where one has none in time, or several."""
    found = machine.python(CONSUMER, json.dumps(ids), timeout)
    by_id = {id: (status, body) for id, status, body in found}
    assert len(by_id) == len(found) == len(ids), f"{len(found)} results of {len(by_id)} workitems, expected {len(ids)}"
    return by_id


def send(machine: Machine, type: str, body: str, *more: str) -> str:
    """The result of a workitem, by the command taskqueue."""
    return machine.run("taskqueue", "send", "--wait", "--timeout", "60", *more, type, body)


def pip(machine: Machine, *wheels: Path) -> None:
    """Install wheels into /usr/local."""
    machine.run("pip", "install", "--quiet", "--break-system-packages", "--no-deps", *machine.put(*wheels))


def add_module(machine: Machine, name: str, text: str, types: dict[str, str]) -> None:
    """Install a module with entry points as pip does, but for the download."""
    machine.write(f"{MODULES}/{name}.py", text)
    metadata = f"{MODULES}/{name}-1.0.dist-info"
    machine.write(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "".join(f"{type} = {value}\n" for type, value in types.items())
    machine.write(f"{metadata}/entry_points.txt", f"[worker.plugins]\n{points}")


def add_egg(machine: Machine) -> None:
    """Install a zipped egg with the worker `zipped`, as `easy_install` did."""
    with zipfile.ZipFile(machine.path("/var/tmp/egg"), "w") as archive:
        archive.writestr("zipped.py", EGG_MODULE)
        archive.writestr("EGG-INFO/PKG-INFO", "Metadata-Version: 1.0\nName: zipped\nVersion: 1.0\n")
        archive.writestr("EGG-INFO/entry_points.txt", "[worker.plugins]\nzipped = zipped:Worker.factory\n")
    machine.run("install", "-D", "-m", "0644", "/var/tmp/egg", f"{MODULES}/{EGG}")
    machine.write(f"{MODULES}/easy-install.pth", f"./{EGG}\n")


def remove_egg(machine: Machine) -> None:
    """Undo that."""
    machine.write(f"{MODULES}/easy-install.pth", "")
    machine.run("rm", f"{MODULES}/{EGG}")


def status(machine: Machine, *daemons: str) -> list[dict[str, Any]]:
    """What `taskqueue status` says of the daemons."""
    files = [word for daemon in daemons for word in ("-p", f"/run/taskqueue-{daemon}/{daemon}.pid")]
    said = machine.run("taskqueue", "status", "--json", *files, status=None)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def events(machine: Machine, file: str) -> dict[str, Sequence[str]]:
    """Id to what the test plugin `record` did with it, in order."""
    found: dict[str, list[str]] = {}
    for line in machine.path(file).read_text().splitlines():
        event, id, *_ = line.split()
        found.setdefault(id, []).append(event)
    return {id: tuple(what) for id, what in found.items()}
