"""How a handler is called, and what is made of what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskqueue.process.calling import call, caller
from taskqueue.worker import Reject
from taskqueue.worker import Retry as RetryLater
from taskqueue.workitem import Workitem


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
