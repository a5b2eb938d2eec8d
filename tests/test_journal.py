"""What a worker process has to say, and has not said yet: nobody loses it, nobody hears it twice."""

from __future__ import annotations

import collections
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actor import Actor, scene
from asking import Asking, running
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.carrier.pace import START_WITHIN
from taskqueue.process.line import Line
from taskqueue.process.protocol import Frames, Kind, pack
from taskqueue.process.shared import JOURNAL, Journal, mapped, size, unsent


def ending(number: int, payload: bytes = b"") -> bytes:
    return pack(Kind.ENDED, [number, 1_000_000, None, 0, "done", "text/plain", []], payload)


def journal_of(actor: Actor) -> Journal:
    return Journal(mapped(actor.memory))


def ended(actor: Actor) -> list[Any]:
    return [tag for what, tag, *_ in actor.owner.events if what == "ended"]


@contextlib.contextmanager
def memory() -> Iterator[int]:
    """A file to share."""
    file = os.memfd_create("test")
    os.ftruncate(file, size(1))
    yield file
    os.close(file)


class TestJournal:
    @given(st.lists(st.binary(min_size=1, max_size=200), max_size=30))
    def test_what_is_kept_is_found_until_it_is_cleared(self, frames: list[bytes]) -> None:
        with memory() as file:
            journal = Journal(mapped(file))
            assert all(journal.keep(frame) for frame in frames)
            assert journal.frames == b"".join(frames)
            assert list(unsent(os.pread(file, size(1), 0)[-JOURNAL:])) == frames
            journal.clear()
            assert journal.frames == b""
            assert list(unsent(os.pread(file, size(1), 0)[-JOURNAL:])) == []

    def test_it_is_full_some_time(self) -> None:
        with memory() as file:
            journal = Journal(mapped(file))
            frame = bytes(1000)
            count = 0
            while journal.keep(frame):
                count += 1
            assert list(unsent(os.pread(file, size(1), 0)[-JOURNAL:])) == [frame] * count
            assert count == JOURNAL // 1008

    @given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=9), st.data())
    def test_what_is_not_whole_ends_it(self, frames: list[bytes], data: st.DataObject) -> None:
        """As where a process is writing just now: a byte of some frame, or of what is said of it, is another one."""
        with memory() as file:
            journal = Journal(mapped(file))
            for frame in frames:
                journal.keep(frame)
            there = bytearray(os.pread(file, size(1), 0)[-JOURNAL:])
            ends = [sum(len(one) + 8 for one in frames[: count + 1]) for count in range(len(frames))]
            place = data.draw(st.integers(0, ends[-1] - 1))
            there[place] ^= data.draw(st.integers(1, 255))
            assert list(unsent(bytes(there))) == frames[: next(n for n, end in enumerate(ends) if place < end)]

    @given(st.binary(max_size=400))
    def test_any_bytes_can_be_in_it(self, bytes: bytes) -> None:
        list(unsent(bytes))


class TestCarrier:
    def test_what_a_process_kept_before_its_death_has_ended(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            actor.mark(1)
            journal_of(actor).keep(ending(1))
            actor.mark(2)
            assert actor.buried() == ({"b": None}, ["c"])
            assert ended(actor) == ["a"]

        scene(play)

    def test_what_is_kept_while_others_wait_is_heard_soon_and_once(self) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            journal_of(actor).keep(ending(1))
            actor.mark(2)
            actor.process._look()
            assert ended(actor) == ["a"]
            actor.process._look()
            actor.socket.sendall(ending(1))
            actor.end(2)
            assert ended(actor) == ["a", "b"]
            assert actor.process.load == 1
            actor.socket.sendall(ending(1))  # now it is said twice in the socket
            actor.process._wire.read()
            assert actor.owner.events[-1][0] == "mute"

        scene(play)

    def test_nothing_is_missed_that_is_sent_while_the_carrier_reads(self) -> None:
        """Just when it has read the socket, the process sends what it kept, and keeps something else in its place."""

        def play(actor: Actor) -> None:
            actor.give("a", "b", "c")
            journal = journal_of(actor)
            actor.mark(1)
            journal.keep(ending(1))
            actor.mark(2)
            read = actor.process._wire.read

            def read_and_go_on() -> None:
                read()
                actor.socket.sendall(journal.frames)
                journal.clear()
                journal.keep(ending(2))
                actor.mark(3)

            actor.process._wire.read = read_and_go_on  # type: ignore[method-assign]
            actor.process._unsure = True
            actor.clock.now += START_WITHIN + 0.001
            actor.process._overdue()
            assert "a" in ended(actor)

        scene(play)

    @given(
        st.sampled_from(
            [
                b"x",
                pack(Kind.ENDED, [1, 0.1, "wonderful"]),
                pack(Kind.ENDED, [[], 0.1, None, 0, "done", None, []]),
                pack(Kind.ENDED, [1, float("nan"), None, 0, "done", None, []]),
                pack(Kind.ENDED, None),
                pack(Kind.ENDED, [77, 1, None, 0, "done", None, []]),
                pack(Kind.READY, None),
                pack(Kind.KILL, {"pid": 1}),
                ending(1)[:-1],
            ]
        )
        | st.binary(min_size=1, max_size=100)
    )
    def test_nonsense_in_it_is_not_heard(self, frame: bytes) -> None:
        def play(actor: Actor) -> None:
            actor.give("a", "b")
            actor.mark(1)
            journal_of(actor).keep(frame)
            actor.process._look()
            assert actor.owner.events == []
            assert actor.buried() == ({"a": None}, ["b"])

        scene(play)


class TestLine:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[Line, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs, memory() as file:
            socket.send_fds(theirs, [pack(Kind.HELLO, {})], [file])
            line = Line(ours)
            line.hello()
            yield line, theirs

    def test_what_is_kept_goes_out_with_the_next_frame_or_when_it_is_told_to(
        self, ends: tuple[Line, socket.socket]
    ) -> None:
        line, other = ends
        frames = Frames()
        line.keep(pack(Kind.ENDED, [1]))
        line.keep(pack(Kind.ENDED, [2], b"x"))
        with pytest.raises(BlockingIOError):
            other.recv(100, socket.MSG_DONTWAIT)
        line.send(Kind.LOG, [3])
        assert [meta for _, meta, _ in frames.feed(other.recv(1000))] == [[1], [2], [3]]
        line.keep(pack(Kind.ENDED, [4]))
        line.flush()
        line.flush()
        assert [meta for _, meta, _ in frames.feed(other.recv(1000))] == [[4]]

    @pytest.mark.parametrize("length", [20_000, JOURNAL + 1])
    def test_what_does_not_fit_is_sent_in_its_turn(self, ends: tuple[Line, socket.socket], length: int) -> None:
        line, other = ends
        for number in range(5):
            line.keep(pack(Kind.ENDED, [number], bytes(length)))
        line.flush()
        frames, found = Frames(), list[Any]()
        while len(found) < 5:
            found += [(number, len(payload)) for _, (number,), payload in frames.feed(other.recv(1 << 16))]
        assert found == [(number, length) for number in range(5)]


def test_many_that_die_have_nothing_done_twice_that_was_done(tmp_path: Path) -> None:
    """Brief workitems, handed over many at a time; one in forty kills its process: all others run once."""
    asking = Asking("memory://")
    file = tmp_path / "tally"
    try:
        with running(asking, kind="processes", count=2):
            for _ in range(100):  # the run time is known then
                asking.ask("double", 1)
            ids = [asking.send("tally", str(file), number, number % 40 == 20) for number in range(400)]
            assert [asking.reply(id) for id in ids] == list(range(400))
    finally:
        asking.close()
    counts = collections.Counter(map(int, file.read_text().split()))
    assert counts == {number: 2 if number % 40 == 20 else 1 for number in range(400)}
