"""The protocol between carrier and worker processes, and the carrier's view of a worker process."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from taskqueue.broker import Delivery, Lease
from taskqueue.carrier.pace import START_WITHIN
from taskqueue.carrier.verdicts import after_answer, after_death
from taskqueue.carrier.worker_process import WorkerProcess
from taskqueue.config import Group
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Release, Retry, TimedOut
from taskqueue.process.calling import call, caller
from taskqueue.process.protocol import START_MARK, Frames, Kind, pack
from taskqueue.process.spawn import ended, everything_of, how_it_ended
from taskqueue.process.wire import Wire
from taskqueue.worker import Reject
from taskqueue.worker import Retry as RetryLater
from taskqueue.workitem import Workitem

GROUP = Group(name="g", type="t", retries=1, retry_delay=10.0)
ITEM = Workitem(body=b"x", id="id", type="t")


class TestFrames:
    def test_any_cut_gives_the_same_frames(self) -> None:
        seed = random.randrange(1 << 30)
        print("seed", seed)
        choose = random.Random(seed)
        frames = [(choose.choice(list(Kind)), {"n": n}, choose.randbytes(choose.randrange(300))) for n in range(100)]
        data = b"".join(pack(*frame) for frame in frames)
        reader, found = Frames(), []
        while data:
            size = choose.randrange(1, 500)
            found += list(reader.feed(data[:size]))
            data = data[size:]
        assert found == frames

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff" * 9,
            b"\x01\0\0\0\x01\0\0\0\0{",
            b"\x63\0\0\0\x02\0\0\0\0{}",
            b"\x01\0\0\x27\x10\0\0\0\0" + b"[" * 10_000,
            b"\x01\0\0\0\x02\0\0\0\0\xff\xff",
        ],
    )
    def test_what_is_no_frame_is_a_value_error(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            list(Frames().feed(data))

    def test_what_json_does_not_know_travels_as_text(self) -> None:
        ((_, meta, _),) = Frames().feed(pack(Kind.WORK, {"a": b"\xff", "b": {1}}))
        assert meta == {"a": "\\xff", "b": "{1}"}


class TestWire:
    def test_what_the_other_end_does_not_take_is_kept_and_sent_later(self) -> None:
        async def run() -> None:
            ours, theirs = socket.socketpair()
            found: list[int] = []
            reader = Wire(theirs, lambda kind, meta, payload: found.append(meta), lambda reason: None)
            asyncio.get_running_loop().remove_reader(theirs)
            wire = Wire(ours, lambda *_: None, lambda reason: None)
            for number in range(50):
                wire.send(Kind.LOG, number, b"x" * 100_000)
            assert wire.backlog > 1_000_000
            asyncio.get_running_loop().add_reader(theirs, reader.read)
            async with asyncio.timeout(20):
                while len(found) < 50:
                    await asyncio.sleep(0.001)
            assert found == list(range(50)) and wire.backlog == 0
            reader.close()
            wire.close()

        asyncio.run(run())

    def test_what_was_said_before_the_end_is_read_before_the_end_is_told(self) -> None:
        async def run() -> None:
            events: list[Any] = []
            ours, theirs = socket.socketpair()
            wire = Wire(ours, lambda kind, meta, payload: events.append(meta), events.append)
            theirs.sendall(b"".join(pack(Kind.LOG, number) for number in range(1000)))
            theirs.close()
            wire.send(Kind.WORK, "too late")
            assert events == []  # never inside of send
            async with asyncio.timeout(20):
                while not wire.ended:
                    await asyncio.sleep(0.001)
            assert events[:-1] == list(range(1000)) and isinstance(events[-1], str)

        asyncio.run(run())

    def test_open_files_go_along_and_none_is_left_behind(self) -> None:
        async def run() -> None:
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            ours, theirs = socket.socketpair()
            taken: list[int] = []
            reader: list[Wire] = []
            reader.append(
                Wire(theirs, lambda *_: taken.append(reader[0].take_file()), lambda reason: None, takes_files=True)
            )
            wire = Wire(ours, lambda *_: None, lambda reason: None)
            for _ in range(20):
                file = os.memfd_create("x")
                os.write(file, b"content")
                wire.send(Kind.PROCESS, None, b"y" * 50_000, files=(file,))
            async with asyncio.timeout(20):
                while len(taken) < 20:
                    await asyncio.sleep(0.001)
            assert {os.pread(file, 100, 0) for file in taken} == {b"content"}
            for file in taken:
                os.close(file)
            reader[0].close()
            wire.send(Kind.PROCESS, None, files=(os.memfd_create("x"),))  # nobody takes it
            wire.close()
            wire.send(Kind.PROCESS, None, files=(os.memfd_create("x"),))
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

        asyncio.run(run())


class Told:
    """The owner of a worker process: notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def ready(self, process: WorkerProcess) -> None:
        self.events.append(("ready",))

    def broken(self, process: WorkerProcess, error: str, traceback: str) -> None:
        self.events.append(("broken", error))

    def ended(self, process: WorkerProcess, delivery: Delivery, outcome: Outcome, seconds: float) -> None:
        self.events.append(("ended", delivery.tag, outcome))

    def unstarted(self, process: WorkerProcess, deliveries: Sequence[Delivery]) -> None:
        self.events.append(("unstarted", *(delivery.tag for delivery in deliveries)))

    def said(self, process: WorkerProcess, name: str, level: int, text: str) -> None:
        self.events.append(("said", name, level, text))

    def mute(self, process: WorkerProcess, reason: str) -> None:
        self.events.append(("mute", reason))

    def over_time(self, process: WorkerProcess) -> None:
        self.events.append(("over time",))


class Actor:
    """The other end, played by the test: what a worker process does, at the moments that matter."""

    def __init__(self, group: Group = GROUP) -> None:
        self.owner = Told()
        ours, self.socket = socket.socketpair()
        self.clock = Moving()
        hello = {"max_result": 1000, "formats": {"installed": {}, "default": "", "read_as": {}}}
        self.process = WorkerProcess(4711, group, ours, hello, self.owner, self.clock)
        _, (self.memory, *_), _, _ = socket.recv_fds(self.socket, 1 << 16, 2)
        self.lease = Lease()

    def say(self, kind: Kind, meta: Any, payload: bytes = b"") -> None:
        self.socket.sendall(pack(kind, meta, payload))
        self.process._wire.read()

    def mark(self, number: int) -> None:
        os.pwrite(self.memory, START_MARK.pack(number), 0)

    def give(self, *tags: str) -> None:
        self.process.hand_over([Delivery(workitem=ITEM, queue="worker_t", tag=tag, lease=self.lease) for tag in tags])

    def end(self, number: int, **more: Any) -> None:
        self.say(Kind.ENDED, [number, 0.001, "done", "text/plain", []], **more)

    def buried(self) -> tuple[Any, ...]:
        blamed, verdict, rest = self.process.bury()
        return (blamed.tag if blamed else None, verdict, [delivery.tag for delivery in rest])

    def close(self) -> None:
        self.socket.close()
        os.close(self.memory)


class Moving:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


def scene(play: Callable[[Actor], None], group: Group = GROUP) -> None:
    """Play with one worker process, inside an event loop that does nothing by itself meanwhile."""

    async def run() -> None:
        actor = Actor(group)
        try:
            play(actor)
        finally:
            actor.close()

    asyncio.run(run())


class TestWorkerProcess:
    def test_the_one_that_was_started_is_blamed_alone(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.mark(2)
            assert actor.buried() == ("b", None, ["c"])

        scene(play)

    def test_what_was_handed_over_and_not_started_is_not_blamed(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            assert actor.buried() == (None, None, ["a", "b"])

        scene(play)

    def test_what_it_reported_before_its_death_has_ended(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.1, "done", None, []]))
            assert actor.buried() == (None, None, ["b"])
            assert actor.owner.events[0] == ("ended", "a", Done(None))

        scene(play)

    def test_an_answer_that_is_none_leaves_its_workitem_running(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.say(Kind.ENDED, [1, 0.1, "wonderful"])
            (event,) = actor.owner.events
            assert event[0] == "mute" and event[1].startswith("nonsense")
            assert not actor.process.usable
            assert actor.buried() == ("a", None, ["b"])

        scene(play)

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, "x", None])
    def test_a_run_time_that_is_none_is_nonsense(self, seconds: object) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.say(Kind.ENDED, [1, seconds, "done", None, []])
            assert [event[0] for event in actor.owner.events] == ["mute"]
            assert actor.buried() == ("a", None, [])

        scene(play)

    def test_what_waits_behind_a_long_one_is_taken_back_once(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.process._look()
            assert actor.owner.events == []
            actor.clock.now += START_WITHIN + 0.001
            actor.process._look()
            assert actor.owner.events == [("unstarted", "b", "c")]
            actor.say(Kind.UNSTARTED, [2, 3])  # it finds out by itself, later
            assert actor.owner.events[1:] == [("unstarted",)]
            actor.end(1)
            assert actor.process.load == 0

        scene(play)

    def test_what_it_did_not_start_in_time_comes_back(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.end(1)
            actor.say(Kind.UNSTARTED, [2, 3])
            assert actor.owner.events[1:] == [("unstarted", "b", "c")]
            assert actor.process.current_since is None

        scene(play)

    def test_a_later_hand_over_is_taken_back_in_time_although_the_time_limit_is_far_away(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            far = actor.process._timer
            assert far is not None
            actor.give("b")
            near = actor.process._timer
            assert near is not None and far.cancelled()
            assert near.when() < far.when() - 3000

        scene(play, Group(name="g", type="t", time_limit=3600.0))

    def test_a_time_limit_blames_the_workitem_that_it_was_measured_for(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.clock.now += 0.06
            actor.process._look()
            assert actor.owner.events[-1] == ("over time",)
            assert not actor.process.usable
            assert actor.buried() == ("a", TimedOut(0.05), ["b"])

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_one_that_was_started_before_the_kill_arrived_is_innocent(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            actor.clock.now += 0.06
            actor.process._look()
            actor.socket.sendall(pack(Kind.ENDED, [1, 0.06, "done", None, []]))
            actor.mark(2)
            assert actor.buried() == ("b", Release(), ["c"])
            assert ("ended", "a", Done(None)) in actor.owner.events

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_the_time_of_each_is_measured_from_the_end_of_the_one_before(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            actor.clock.now += 0.04
            actor.end(1)
            actor.mark(2)
            actor.clock.now += 0.04
            actor.process._look()
            assert ("over time",) not in actor.owner.events
            actor.clock.now += 0.04
            actor.process._look()
            assert ("over time",) in actor.owner.events

        scene(play, Group(name="g", type="t", time_limit=0.05))

    def test_a_result_that_is_too_long_is_nonsense(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a")
            actor.mark(1)
            actor.end(1, payload=b"x" * 1001)
            assert actor.buried() == ("a", None, [])

        scene(play)


class TestAfterAnswer:
    def answer(self, *answer: Any, payload: bytes = b"r", item: Workitem = ITEM) -> Outcome:
        return after_answer(item, GROUP, json.loads(json.dumps(answer)), payload, jitter=1.0)

    def test_what_it_says_is_what_becomes_of_it(self) -> None:
        used_up = Workitem(body=b"x", type="t", failures=1)
        assert self.answer("done", "text/plain", []) == Done(Payload(b"r", "text/plain"))
        assert self.answer("done", None, []) == Done(None)
        assert self.answer("failed", "e", "tb", "application/json") == Retry(10.0, "e")
        assert self.answer("failed", "e", "tb", "a/b", item=used_up) == Failed("e", "tb", Payload(b"r", "a/b"))
        assert self.answer("retry", 5, "why") == Retry(5.0, "why", "attempt")
        assert self.answer("reject", "why") == Dead("rejected", "why")
        assert self.answer("malformed", "why") == Dead("malformed", "why")

    def test_what_was_published_goes_along(self) -> None:
        sent = ["results", {"id": "i", "headers": {"a": 1}, "priority": 3, "content_type": "text/plain"}, "\xff"]
        outcome = self.answer("done", None, [sent])
        assert isinstance(outcome, Done)
        (send,) = outcome.sends
        assert (send.queue, send.workitem.body, send.workitem.priority) == ("results", b"\xff", 3)

    @pytest.mark.parametrize(
        "answer",
        [
            [],
            ["wonderful"],
            ["done"],
            ["done", 1, []],
            ["done", "x" * 256, []],
            ["done", "\ud800", []],
            ["done", None, [["q"]]],
            ["done", None, [[1, {}, ""]]],
            ["done", None, [["q", {"priority": 256}, ""]]],
            ["done", None, [["q", {"priority": "x"}, ""]]],
            ["done", None, [["q", {"timestamp": -1}, ""]]],
            ["done", None, [["q", {"id": 5}, ""]]],
            ["done", None, [["q", {"due": 5}, ""]]],
            ["done", None, [["q", {"nonsense": "x"}, ""]]],
            ["done", None, [["q", {"headers": "x"}, ""]]],
            ["done", None, [["q", {}, "\u0100"]]],
            ["retry", -1, ""],
            ["retry", float("inf"), ""],
            ["retry", float("nan"), ""],
            ["retry", "soon", ""],
            ["reject", 5],
        ],
        ids=repr,
    )
    def test_what_is_no_answer_is_an_error_and_reaches_nobody(self, answer: list[Any]) -> None:
        with pytest.raises((ValueError, TypeError)):
            self.answer(*answer)

    def test_a_death(self) -> None:
        used_up = Workitem(body=b"x", type="t", failures=1)
        assert after_death(ITEM, GROUP, "SIGSEGV", None, jitter=1.0) == Crashed("SIGSEGV")
        assert after_death(ITEM, GROUP, "SIGKILL", Release(), jitter=1.0) == Release()
        assert isinstance(after_death(ITEM, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0), Retry)
        assert after_death(used_up, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0) == TimedOut(1.0)


class Handler:
    def __init__(self, handle: Callable[..., Any]) -> None:
        self.handle_task = handle


class TestCalling:
    def call(self, handle: Callable[..., Any], max_result: int = 1000) -> tuple[Any, ...]:
        worker = Handler(handle)
        return call(
            caller(worker, max_result), Workitem(body=b"x", type="t", content_type="text/plain"), max_result
        ).meta

    def raising(self, error: BaseException) -> tuple[Any, ...]:
        def handle(body: str) -> None:
            raise error

        return self.call(handle)

    def test_every_exception_is_an_answer(self) -> None:
        class Unspeakable(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        for error in (
            ValueError("x"),
            SystemExit(0),
            KeyboardInterrupt(),
            GeneratorExit(),
            RecursionError(),
            Unspeakable(),
        ):
            assert self.raising(error)[0] == "failed"

    def test_what_a_handler_asks_for_is_checked_here(self) -> None:
        odd = RetryLater()
        odd.after = object()  # type: ignore[assignment]
        assert self.raising(RetryLater(5, "why")) == ("retry", 5.0, "why")
        assert self.raising(RetryLater(-5))[1] == 0.0
        assert self.raising(RetryLater(float("inf")))[0] == "failed"
        assert self.raising(odd)[0] == "failed"
        assert self.raising(Reject("why")) == ("reject", "why")
        assert self.raising(Reject(5)) == ("reject", "5")  # type: ignore[arg-type]

    def test_a_result_that_is_too_long_is_a_failure(self) -> None:
        assert self.call(lambda body: "x" * 1000)[0] == "done"
        assert "1001 bytes, more than max_body (1000)" in self.call(lambda body: "x" * 1001)[1]

    def test_the_older_form_is_known_by_its_four_arguments(self) -> None:
        def older(channel: Any, method: Any, header: Any, body: bytes) -> None:
            channel.basic_publish("", "results", "text")
            channel.basic_ack(method.delivery_tag)

        assert self.call(older) == ("done", None, (("results", {"headers": {}, "id": ""}, "text"),))
        assert self.call(lambda body, optional=1: body)[0] == "done"

    def test_what_a_channel_would_refuse_fails_there(self) -> None:
        from pika.spec import BasicProperties

        def publish(**arguments: Any) -> Any:
            def older(channel: Any, method: Any, header: Any, body: bytes) -> None:
                channel.basic_publish(**{"exchange": "", "routing_key": "results", "body": b"", **arguments})
                channel.basic_ack()

            return self.call(older)

        assert publish()[0] == "done"
        assert "exchange" in publish(exchange="amq.topic")[1]
        assert "max_body" in publish(body=b"x" * 1001)[1]
        assert publish(properties=BasicProperties(content_type="x" * 300))[0] == "failed"
        assert publish(properties=BasicProperties(priority=300))[0] == "failed"


class TestEnds:
    def test_how_it_ended(self) -> None:
        assert how_it_ended(0) == "exit status 0"
        assert how_it_ended(-signal.SIGSEGV) == "SIGSEGV"
        assert how_it_ended(-63) == "signal 63"

    @pytest.mark.parametrize(("end", "stays"), [("0", True), ("1", False), ("kill", False)])
    def test_what_a_process_leaves_behind_is_killed_but_for_a_good_end(self, end: str, stays: bool) -> None:
        code = (
            "import os, subprocess, sys\n"
            "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)\n"
            "print(child.pid, flush=True)\n"
            f"os.kill(os.getpid(), 9) if {end!r} == 'kill' else os._exit({end if end != 'kill' else 0})\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.stdout.close()
        deadline = time.monotonic() + 20
        while ended(process) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        try:
            for _ in range(1000):
                with open(f"/proc/{child}/stat") as stat:
                    alive = stat.read().rpartition(")")[2].split()[0] not in "ZX"
                if alive == stays:
                    break
                time.sleep(0.005)
            assert alive == stays
        except FileNotFoundError:
            assert not stays
        finally:
            if stays:
                os.kill(child, signal.SIGKILL)

    def test_a_process_that_was_waited_for_is_never_signalled(self) -> None:
        process = subprocess.Popen(["true"], process_group=0)
        process.wait()
        everything_of(process, signal.SIGKILL)
        assert ended(process) == 0
