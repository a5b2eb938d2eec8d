"""Frames, and the two ends that carry them."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import Any

import pytest

from taskqueue.process.protocol import Frames, Kind, pack
from taskqueue.process.wire import Wire


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


def test_what_came_of_a_frame_is_kept_for_whoever_goes_on_with_the_stream() -> None:
    frame = pack(Kind.LOG, ["name", 10, "text"], b"payload")
    first, second = Frames(), Frames()

    assert list(first.feed(frame + frame[:7])) == [(Kind.LOG, ["name", 10, "text"], b"payload")]
    assert list(second.feed(first.rest)) == []

    assert list(second.feed(frame[7:])) == [(Kind.LOG, ["name", 10, "text"], b"payload")]
    assert second.rest == b""
