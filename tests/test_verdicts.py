"""From what a worker process says, or from how it died, to an outcome."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskqueue.carrier.verdicts import after_answer, after_death
from taskqueue.config import Group
from taskqueue.outcome import Crashed, Dead, Done, Failed, Outcome, Payload, Release, Retry, TimedOut
from taskqueue.workitem import Workitem

GROUP = Group(name="g", type="t", retries=1, retry_delay=10.0)
ITEM = Workitem(body=b"x", id="id", type="t")


class TestAfterAnswer:
    def answer(self, *answer: Any, payload: bytes = b"r", item: Workitem = ITEM) -> Outcome:
        return after_answer(item, GROUP, json.loads(json.dumps(answer)), payload, jitter=1.0)

    def test_what_it_says_is_what_becomes_of_it(self) -> None:
        used_up = Workitem(body=b"x", type="t", failures=1)
        assert self.answer("done", "text/plain", []) == Done(Payload(b"r", "text/plain"))
        assert self.answer("done", None, []) == Done(None)
        assert self.answer("done", "a/b", [], ["x", "y"]) == Done(Payload(b"r", "a/b"), (), ("x", "y"))
        assert self.answer("failed", "e", "tb", "application/json", None) == Retry(10.0, "e")
        assert self.answer("failed", "e", "tb", "a/b", None, item=used_up) == Failed("e", "tb", Payload(b"r", "a/b"))
        assert self.answer("failed", "e", "tb", "a/b", 0) == Failed("e", "tb", Payload(b"r", "a/b"))
        assert isinstance(self.answer("failed", "e", "tb", "a/b", 9, item=used_up), Retry)
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
            ["done", "a/b", [], []],
            ["done", "a/b", [], [1]],
            ["done", "a/b", [], ["x", "y" * 256]],
            ["done", None, [], ["x"]],
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
        assert after_death(ITEM, GROUP, "SIGKILL", Crashed("too large"), jitter=1.0) == Crashed("too large")
        assert after_death(ITEM, GROUP, "SIGKILL", Release(), jitter=1.0) == Release()
        assert isinstance(after_death(ITEM, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0), Retry)
        assert after_death(used_up, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0) == TimedOut(1.0)
        never = ITEM._replace(headers={"task": "shop.num", "retries": 0})
        assert after_death(never, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0) == TimedOut(1.0)
        often = used_up._replace(headers={"task": "shop.num", "retries": 2})
        assert isinstance(after_death(often, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0), Retry)
        other = used_up._replace(headers={"retries": 2})
        assert after_death(other, GROUP, "SIGKILL", TimedOut(1.0), jitter=1.0) == TimedOut(1.0)
