"""Which dead letters are meant, what becomes of them, how they are shown, and how fast they are ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from taskqueue.broker import Broker, DeadLetters, connect
from taskqueue.cli import replay
from taskqueue.cli.letters import plain, row, table, text, whole
from taskqueue.cli.replay import Pace, end_all, page_size
from taskqueue.dead import Selection, age, requeued
from taskqueue.outcome import Crashed, Dead, Failed, Forward, Outcome, Rules, effects
from taskqueue.workitem import DEAD_LETTERS, INCOMING, Workitem

NOW = 10_000.0
WORK = Workitem(
    id="1",
    type="t",
    body=b"work",
    content_type="text/plain",
    headers={"mine": 1},
    correlation_id="c",
    reply_to="client",
    reference="order:1",
    timestamp=5,
    priority=3,
    others={"app_id": "a"},
)
HOSTILE = "\x1b]0;pwned\x07\r\u202e\x9b31m\ud800"


def given_up(outcome: Outcome, workitem: Workitem = WORK, queue: str = "worker_t", now: float = NOW) -> Workitem:
    """The dead letter of it."""
    return effects(workitem, outcome, Rules(max_crashes=1), queue=queue, now=now).sends[-1].workitem


class TestSelection:
    LETTER = given_up(Failed("no"), now=NOW - 100)

    @pytest.mark.parametrize(
        ("selection", "picked"),
        [
            (Selection(), True),
            (Selection(ids=frozenset(("1", "2"))), True),
            (Selection(ids=frozenset("2")), False),
            (Selection(types=frozenset(("t", "u"))), True),
            (Selection(types=frozenset("u")), False),
            (Selection(reasons=frozenset(("failed",))), True),
            (Selection(reasons=frozenset(("crashed",))), False),
            (Selection(older=100), True),
            (Selection(older=101), False),
            (Selection(newer=100), True),
            (Selection(newer=99), False),
            (Selection(older=50, newer=150), True),
            (Selection(older=50, newer=90), False),
            (Selection(ids=frozenset("1"), types=frozenset("t"), reasons=frozenset(("failed",)), older=1), True),
            (Selection(ids=frozenset("1"), types=frozenset("t"), reasons=frozenset(("failed",)), older=1000), False),
        ],
    )
    def test_all_that_is_named_must_hold(self, selection: Selection, picked: bool) -> None:
        assert selection.picks(self.LETTER, NOW) is picked

    @pytest.mark.parametrize("died", [None, "yesterday", True, b"1"])
    def test_a_letter_without_a_time_is_neither_old_nor_new(self, died: object) -> None:
        letter = self.LETTER._replace(headers={"died": died})

        assert age(letter, NOW) is None
        assert Selection().picks(letter, NOW)
        assert not Selection(older=0).picks(letter, NOW)
        assert not Selection(newer=1e9).picks(letter, NOW)

    def test_a_clock_that_is_behind_makes_no_letter_younger_than_now(self) -> None:
        assert age(given_up(Failed("no"), now=NOW + 50), NOW) == 0.0

    def test_a_type_may_stand_in_the_header_only(self) -> None:
        letter = self.LETTER._replace(type="", headers={"worker_type": "t"})

        assert Selection(types=frozenset("t")).picks(letter, NOW)


class TestRequeued:
    @pytest.mark.parametrize("outcome", [Failed("no", "Traceback ..."), Crashed("SIGSEGV"), Dead("rejected", "never")])
    def test_it_is_what_it_was_with_counters_anew(self, outcome: Outcome) -> None:
        letter = given_up(outcome, WORK._replace(attempt=7, failures=3, crashes=2))
        odd = letter._replace(attempt=7, failures=3, crashes=2, due=NOW)  # of somebody else

        assert requeued(letter) == requeued(odd) == Forward(WORK, queue="worker_t")

    @pytest.mark.parametrize("reason", ["malformed", "too many types"])
    def test_what_a_dispatcher_gave_up_is_parsed_again(self, reason: str) -> None:
        raw = WORK._replace(type="", headers={"worker_type": "t", "taskqueue_version": 2})
        letter = given_up(Dead(reason), raw, INCOMING)  # type: ignore[arg-type]
        read = letter._replace(type="t", headers={n: v for n, v in letter.headers.items() if n != "worker_type"})

        assert requeued(letter) == requeued(read) == Forward(raw, queue=INCOMING)

    def test_what_expired_goes_to_the_queue_of_its_type_or_to_the_dispatcher(self) -> None:
        expired = given_up(Dead("expired", "in queue worker_t"), WORK, "taskqueue.dropped")
        early = given_up(Dead("expired"), WORK._replace(type="", headers={"x-death": []}), "taskqueue.dropped")

        assert requeued(expired).queue == "worker_t"
        assert requeued(early) == Forward(WORK._replace(type="", headers={}), queue=INCOMING)


class TestShowing:
    def test_nothing_can_drive_the_terminal(self) -> None:
        letter = given_up(Failed(HOSTILE, f"{HOSTILE}\n  File {HOSTILE}"))._replace(
            id=HOSTILE,
            body=f"1\n{HOSTILE}".encode(errors="replace"),
            reference=HOSTILE,
            headers={
                "reason": HOSTILE,
                "detail": HOSTILE,
                "died": NOW,
                HOSTILE: {HOSTILE: [HOSTILE.encode("utf-16", "replace")]},
            },
        )

        lines = [*table([row(letter, NOW)], None), *text(letter, NOW), json.dumps(whole(letter, NOW), default=plain)]

        assert all(line.isprintable() for line in lines)
        assert "\\x1b]0;pwned\\x07\\r\\u202e\\x9b31m\\ud800" in lines[1]

    def test_all_of_a_letter_is_shown(self) -> None:
        letter = given_up(Failed("ValueError: no", "Traceback\n  File"), WORK._replace(body=b"1\n2", attempt=4))

        shown = "\n".join(text(letter, NOW + 7300))
        said = whole(letter, NOW)

        for part in (
            "ValueError: no",
            "worker_t",
            "order:1",
            "client",
            "text/plain",
            "(2h ago)",
            "mine",
            "  File",
            "  2",
        ):
            assert part in shown
        assert (said["id"], said["attempts"], said["reason"], said["died"]) == ("1", 4, "failed", 10_000)
        assert (said["body"], said["headers"], said["traceback"]) == ("1\n2", {"mine": 1}, "Traceback\n  File")

    def test_a_binary_body_is_shown_in_hexadecimal(self) -> None:
        letter = given_up(Failed("no"))._replace(body=bytes(range(256)))

        *_, first, last = (line for line in text(letter, NOW) if line.startswith("  0000000") or line.endswith("."))

        assert "body" not in whole(letter, NOW) and whole(letter, NOW)["body_base64"].startswith("AAEC")
        assert first.startswith("  000000e0  e0 e1") and last.startswith("  000000f0")

    def test_headers_that_json_does_not_know_are_shown(self) -> None:
        odd = {"time": datetime(2026, 1, 1, tzinfo=UTC), "bytes": b"\xff", "died": float("1e300"), "reason": b"\x1b"}
        letter = WORK._replace(headers=odd)

        assert all(line.isprintable() for line in text(letter, NOW))
        assert whole(letter, NOW)["headers"] == {"time": "2026-01-01 00:00:00+00:00", "bytes": "\\xff"}

    def test_a_long_line_is_cut_at_a_terminal_only(self) -> None:
        rows = [row(given_up(Failed("x" * 500)), NOW)]

        assert [len(line) for line in table(rows, 80)][1] == 80
        assert [*table(rows, None)][1].endswith("x" * 500)


class TestPace:
    @pytest.mark.parametrize("rate", [0.5, 3.0, 100.0, 5000.0])
    def test_no_more_than_the_rate_is_passed(self, rate: float) -> None:
        pace, now, passed = Pace(rate), 50.0, []
        for _ in range(40):
            now += pace.wait(pace.batch, now)
            passed.append(now)
            now += 0.001

        assert passed[0] == 50.0
        assert all(after - before >= pace.batch / rate - 1e-9 for before, after in pairwise(passed))
        assert len(passed) * pace.batch / (passed[-1] + pace.batch / rate - passed[0]) <= rate + 1e-9

    def test_without_a_rate_nothing_waits(self) -> None:
        assert [Pace(None).wait(1000, 1.0) for _ in range(3)] == [0.0] * 3

    def test_a_page_is_not_held_for_long(self) -> None:
        assert (page_size(None), page_size(0.1), page_size(10), page_size(1e6)) == (5000, 1, 150, 5000)


class TestEndingMany:
    @pytest.fixture
    def broker(self) -> Iterator[Broker]:
        broker = connect("memory://")
        letters = [given_up(Failed("no"), WORK._replace(id=str(n), body=b"x" * 10)) for n in range(10)]
        broker.producer().send(letters, queue=DEAD_LETTERS)
        yield broker
        asyncio.run(broker.close())

    def end(self, broker: Broker, limit: int | None = None, odd: bool = False) -> tuple[list[str], list[int]]:
        view = broker.dead_letters()
        ended: list[str] = []
        found: list[int] = []

        def note(letter: Workitem, counted: bool) -> None:
            assert counted
            ended.append(letter.id)
            if len(ended) == 3:  # one of them fails again
                broker.producer().send([given_up(Failed("again"), letter)], queue=DEAD_LETTERS)

        def picks(letter: Workitem) -> bool:
            return not odd or int(letter.id) % 2 == 1

        work = end_all(view, picks, requeued, limit=limit, rate=None, found=found.append, ended=note)
        asyncio.run(asyncio.wait_for(work, 20))
        return ended, found

    @pytest.mark.parametrize(("pages", "bytes"), [(5000, 1 << 20), (3, 1 << 20), (5000, 25)])
    def test_each_is_ended_once_also_in_pages_and_what_comes_again_is_left(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch, pages: int, bytes: int
    ) -> None:
        monkeypatch.setattr(replay, "PAGE", pages)
        monkeypatch.setattr(replay, "PAGE_BYTES", bytes)

        assert self.end(broker) == ([str(n) for n in range(10)], [10])
        assert asyncio.run(ids(broker.dead_letters())) == ["2"]

    def test_a_limit_takes_the_first(self, broker: Broker) -> None:
        assert self.end(broker, limit=2) == (["0", "1"], [2])

    def test_only_what_is_picked_is_ended(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replay, "PAGE", 2)

        assert self.end(broker, odd=True) == (["1", "3", "5", "7", "9"], [5])
        assert asyncio.run(ids(broker.dead_letters())) == ["0", "2", "4", "6", "8", "5"]


async def ids(view: DeadLetters) -> list[str]:
    return [delivery.workitem.id async for delivery in view.look()]
