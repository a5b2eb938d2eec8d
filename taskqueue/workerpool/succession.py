"""What one version of the manager leaves to the next: carriers with their sockets, and worker processes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from taskqueue.config import Group
from taskqueue.process.spawn import Adopted
from taskqueue.workerpool.children import Children
from taskqueue.workerpool.processes import Process

__all__ = ["adopt", "descriptors", "flush", "groups_of", "leave"]

log = logging.getLogger(__name__)

FLUSH_TIMEOUT = 5.0  # seconds that a carrier has to take what was said to it


def leave(children: Children) -> dict[str, Any]:
    """All that the next one needs to know of them."""
    carriers = []
    for carrier in children.carriers:
        descriptor, rest = carrier.left
        carriers.append(
            {"pid": carrier.pid, "socket": descriptor, "rest": rest.hex(), "started": carrier.started}
        )  # fmt: skip
    processes = [
        {
            "pid": pid,
            "carrier": process.carrier.pid,
            "group": asdict(process.group),
            "started": process.started,
            "up": process.up,
        }
        for pid, process in children.workers.all.items()
    ]
    return {"carriers": carriers, "processes": processes}


def flush(children: Children) -> bool:
    """Have carriers take all that was said to them; False where one does not."""
    return all(carrier.flush(FLUSH_TIMEOUT) for carrier in children.carriers)


def descriptors(left: Mapping[str, Any]) -> Sequence[int]:
    """The files that have to stay open."""
    return [carrier["socket"] for carrier in left["carriers"]]


def groups_of(left: Mapping[str, Any]) -> list[Group]:
    """The group of each worker process, as this version understands it."""
    known = {field.name for field in fields(Group)}
    pairs = ("environment", "settings")
    groups = []
    for process in left["processes"]:
        values = {name: value for name, value in process["group"].items() if name in known}
        values.update({name: tuple((str(n), str(v)) for n, v in values.get(name, ())) for name in pairs})
        groups.append(Group(**values))
    return groups


def adopt(children: Children, left: Mapping[str, Any]) -> None:
    """Go on with what a former version left: what runs there is finished, however long it takes; nothing new begins."""
    carriers = {}
    for each in left["carriers"]:
        sock = socket.socket(fileno=each["socket"])
        sock.set_inheritable(False)
        carrier = children.know_carrier(
            Adopted(each["pid"]), sock, each["started"], {}, rest=bytes.fromhex(each["rest"])
        )
        children.retiring.append(carrier)
        carriers[carrier.pid] = carrier
    for each, group in zip(left["processes"], groups_of(left), strict=True):
        children.workers.all[each["pid"]] = Process(
            offspring=Adopted(each["pid"]),
            carrier=carriers[each["carrier"]],
            group=group,
            started=each["started"],
            up=each["up"],
        )
    for carrier in carriers.values():
        children.drain(carrier, patient=True)
        log.info("carrier %d of the version before finishes what runs", carrier.pid)
