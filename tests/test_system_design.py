"""The configuration of the design, verbatim, with two dispatchers; and fair shares between worker managers."""

from __future__ import annotations

import json
import os
import pwd
from collections import Counter, defaultdict
from typing import Any

import pytest
from configurations import DESIGN
from system import System, users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")


def in_turns(number: int, type: str) -> tuple[str, dict[str, Any]]:
    """Workitem `number` in one of the four formats."""
    text = f"item {number}"
    properties: dict[str, Any] = {"message_id": f"id{number}"}
    match number % 4:
        case 0:
            body = json.dumps({"worker_type": type, "workitem": text})
            return body, {**properties, "content_type": "application/json"}
        case 1:
            ruote = {"number": number, "fields": {"params": {"worker_type": type}}}
            return json.dumps(ruote), {**properties, "content_type": "application/json; charset=utf-8"}
        case 2:
            return f"{type} {text}", properties
        case _:
            return text, {**properties, "headers": {"worker_type": type}}


@needs_root
def test_the_configuration_of_the_design(system: System) -> None:
    with users("bifh1", "bifh2"):
        config = system.write(DESIGN)
        dispatchers = [system.dispatcher(config, TASKQUEUE_URL=system.url) for _ in range(2)]
        pool = system.workerpool(config, TASKQUEUE_URL=system.url)
        pool.wait_ready(3, "worker1")
        for group in ("worker2_bifh1", "worker2_bifh2", "whoami", "echo"):
            pool.wait_ready(1, group)
        types = ("worker1", "worker2", "worker2", "whoami")  # by turns; 250 and 500 of a thousand
        wanted = {f"id{n}": (types[n // 4 % 4], n) for n in range(1000)}

        system.publish_all("taskqueue", [in_turns(n, type) for type, n in wanted.values()])
        results = system.collect("results", 1000)

        assert Counter(result.properties.correlation_id for result in results) == Counter(wanted.keys())
        assert {result.headers["status"] for result in results} == {"succeeded"}
        by_user: dict[str, set[int]] = defaultdict(set)
        shares: Counter[str] = Counter()
        for result in results:
            type, number = wanted[result.properties.correlation_id]
            body, format = in_turns(number, type)[0], number % 4
            assert result.headers["worker_type"] == type
            if type == "worker1":  # the older form gets the bytes, whatever they are
                bare = {0: json.dumps(f"item {number}"), 1: body, 2: f"item {number}", 3: f"item {number}"}[format]
                assert result.body == bare.upper().encode()
                continue
            value = result.value
            by_user[f"{type} {value['user']}"].add(value["pid"])
            shares[value["user"]] += 1
            assert value["uid"] == pwd.getpwnam(value["user"]).pw_uid
            if type == "worker2":
                assert value["body"] == (json.loads(body) if format == 1 else f"item {number}")
        print("shares", shares)
        assert {name: len(pids) for name, pids in by_user.items()} == {
            "worker2 bifh1": 1,
            "worker2 bifh2": 1,
            "whoami nobody": 1,
        }
        assert len(pool.ready("worker1")) == 3
        for daemon in (pool, *dispatchers):
            daemon.stop()
        assert [system.depth(queue) for queue in ("results", "taskqueue", "worker_worker1", "worker_worker2")] == [
            0
        ] * 4


def test_equal_work_is_shared_equally(system: System) -> None:
    file = system.open_directory / "record"
    config = system.config(
        f"[DEFAULT]\nworkers = 0\n[record]\nworkers = 2\nfile = {file}\nresults_routing_key = shared\n"
    )
    system.connection.channel().queue_declare("shared", durable=True)
    dispatcher = system.dispatcher(config)
    pools = [system.workerpool(config, ready=2) for _ in range(2)]

    system.publish("taskqueue", *[f"record {n}" for n in range(1000)])
    system.collect("shared", 1000)

    shares = Counter(line.split()[-1] for line in file.read_text().splitlines() if line.startswith("start"))
    print("shares", sorted(shares.values()))
    assert len(shares) == 4 and sum(shares.values()) == 1000
    assert all(200 <= share <= 300 for share in shares.values()), shares
    for daemon in (dispatcher, *pools):
        daemon.stop()
