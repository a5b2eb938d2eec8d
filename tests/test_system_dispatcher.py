"""Dispatchers: what can't be passed on becomes a dead letter, whole; queues are there before workers are."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable

from installations import Installation
from servers import RabbitMQ
from system import System, until

JSON = {"content_type": "application/json"}


def test_what_is_malformed_becomes_a_dead_letter_whole(system: System) -> None:
    dispatcher = system.dispatcher(system.config(max_body="10K"))
    malformed = [
        ("{", JSON, "not JSON"),
        ("[1]", JSON, "not an object"),
        ('{"workitem": 1}', JSON, 'no "worker_type"'),
        ('{"worker_type": 1, "workitem": 1}', JSON, "not a string"),
        ('{"worker_type": ' + "[" * 4000 + "]" * 4000 + "}", JSON, "nested deeper"),
        ('{"worker_type": "a", "workitem": ' + "[" * 300 + "]" * 300 + "}", JSON, "nested deeper"),
        ("  ", {}, "no worker type"),
        ("../etc/passwd x", {}, "no valid worker type"),
        ("a" * 129 + " x", {}, "no valid worker type"),
        (b"\xff\xfe x", {}, "not utf-8"),
        ("x" * 10_241, {}, "more than max_body"),
        ("<x/>", {"content_type": "text/xml"}, "unknown content type"),
        ("x", {"content_type": None}, "neither a content type"),
        ("x", {"content_type": "text/plain; charset=klingon"}, "unknown encoding"),
        ("x", {"headers": {"worker_type": "no good"}}, "no valid worker type"),
        ("x", {"headers": {"worker_type": "echo", "taskqueue_version": 99}}, "newer than"),
        ("x", {"headers": {"worker_type": "echo", "taskqueue_version": "one"}}, "not a version"),
    ]
    messages = [(body, {**properties, "message_id": f"id{n}"}) for n, (body, properties, _) in enumerate(malformed)]

    system.publish_all("taskqueue", messages)
    letters = {letter.properties.message_id: letter for letter in system.dead_letters(len(malformed))}

    for number, (body, properties, detail) in enumerate(malformed):
        letter = letters[f"id{number}"]
        assert letter.body == (body if isinstance(body, bytes) else body.encode())
        assert letter.properties.content_type == {"content_type": "text/plain", **properties}["content_type"]
        assert letter.headers["reason"] == "malformed"
        assert detail in letter.headers["detail"], (body[:50], letter.headers["detail"])
        assert letter.headers["from"] == "taskqueue"
    dispatcher.stop()
    assert "Traceback" not in dispatcher.log


def test_queues_are_made_before_the_first_worker_is_installed_and_not_too_many(system: System) -> None:
    config = system.config(max_types=3)
    dispatcher = system.dispatcher(config)

    system.publish("taskqueue", "a 1", "b 1", "c 1", "d 1", "a 2", "d 2")

    letters = system.dead_letters(2)
    assert [letter.body for letter in letters] == [b"d 1", b"d 2"]
    assert {(letter.headers["reason"], letter.headers["from"]) for letter in letters} == {
        ("too many types", "taskqueue")
    }
    for type, count in (("a", 2), ("b", 1), ("c", 1)):
        system.wait_queue(f"worker_{type}", count)
    assert system.depth("worker_d") is None
    dispatcher.stop()

    message = system.collect("worker_a", 1)[0]
    assert (message.body, message.headers["worker_type"]) == (b"1", "a")
    assert message.properties.message_id  # an id was made


def test_everything_else_travels_as_it_came_and_is_not_multiplied(system: System) -> None:
    dispatcher = system.dispatcher(system.config())
    for queue in ("other", "another"):
        system.connection.channel().queue_declare(queue, durable=True)
    headers = {"worker_type": "a", "CC": ["other"], "BCC": ["another"], "mine": "kept", "reference": "r"}
    sent = {"message_id": "id", "correlation_id": "c", "reply_to": "r", "timestamp": 4711, "app_id": "app", "type": "t"}

    system.publish("taskqueue", "x", headers=headers, priority=3, **sent)
    (message,) = system.collect("worker_a", 1)

    assert message.headers.items() >= {"mine": "kept", "reference": "r", "worker_type": "a"}.items()
    assert "CC" not in message.headers
    assert {name: getattr(message.properties, name) for name in sent} == sent
    dispatcher.stop()
    # One copy each is what the producer has ordered of its broker; the dispatcher orders no further ones.
    assert [system.depth(queue) for queue in ("other", "another", "taskqueue", "worker_a")] == [1, 1, 0, 0]


def test_what_expires_becomes_a_dead_letter(system: System) -> None:
    dispatcher = system.dispatcher(system.config())

    system.publish("taskqueue", "a soon", expiration="100", message_id="id")

    (letter,) = system.dead_letters(1)
    assert (letter.body, letter.headers["reason"], letter.headers["worker_type"]) == (b"soon", "expired", "a")
    assert "worker_a" in letter.headers["detail"]
    assert letter.properties.message_id == "id"
    assert not letter.properties.expiration
    until(lambda: system.depth("taskqueue.dropped") == 0)
    dispatcher.stop()


def test_two_dispatchers_share_a_queue_and_a_drain_loses_nothing(system: System) -> None:
    config = system.config()
    first, second = system.dispatcher(config), system.dispatcher(config)
    bodies = [json.dumps({"worker_type": f"t{n % 3}", "workitem": n}) for n in range(3000)]
    system.publish_all("taskqueue", [(body, JSON) for body in bodies[:1000]])

    system.publish_all("taskqueue", [(body, JSON) for body in bodies[1000:]])
    first.stop()

    until(lambda: sum(system.depth(f"worker_t{n}") or 0 for n in range(3)) >= 3000)
    second.stop()
    numbers = Counter(message.value for n in range(3) for message in system.collect(f"worker_t{n}", 1000))
    assert numbers == Counter(range(3000))  # none lost, none twice
    assert [system.depth(f"worker_t{n}") for n in range(3)] == [0, 0, 0]
    assert system.depth("taskqueue") == 0


def test_lost_connections_lose_nothing_and_results_of_lost_deliveries_are_discarded(
    installation: Installation, start_rabbitmq: Callable[..., RabbitMQ]
) -> None:
    server = start_rabbitmq()
    with System(installation, server.url()) as system:
        file = system.open_directory / "record"
        config = system.config(
            f"[DEFAULT]\nworkers = 0\n[record]\nworkers = 2\nfile = {file}\nseconds = 3\nprefetch = 4\n"
        )
        dispatcher, pool = system.dispatcher(config), system.workerpool(config, ready=2)
        system.publish("taskqueue", *[f"record {n}" for n in range(4)])
        until(lambda: file.exists() and file.read_text().count("start") == 2)

        def all_forwarded() -> bool:  # acknowledged, too, for which a new queue must be a second old
            dispatcher.signal(signal.SIGUSR1)
            return "held 0, settled 4" in dispatcher.log

        until(all_forwarded)
        began = time.monotonic()
        system.disconnect()

        server.ctl("close_all_connections", "on purpose")
        print(f"closed after {time.monotonic() - began:.1f} s")

        pool.logged("connection to .* lost: .*on purpose")
        pool.logged("its delivery was lost, somebody else has it now; Done discarded", count=2)
        pool.logged("connected to", count=2)
        dispatcher.logged("connected to", count=2)
        results = system.collect("results", 4)
        assert Counter(result.body for result in results) == Counter([b"0", b"1", b"2", b"3"])
        assert {result.headers["attempt"] for result in results} == {1}
        assert file.read_text().count("start") == 6
        system.publish("taskqueue", "record more")
        assert system.collect("results", 1)[0].body == b"more"
        pool.stop()
        dispatcher.stop()
        assert (system.depth("results"), system.depth("worker_record"), system.depth("taskqueue")) == (0, 0, 0)
