"""What every broker does with results and failures."""

from __future__ import annotations

from dataclasses import replace

from taskqueue.outcome import (
    Done,
    Failed,
    Payload,
    Send,
)
from taskqueue.testing.bench import QUEUE, RULES, TYPE, Bench, item
from taskqueue.workitem import DEAD_LETTERS, worker_queue

__all__ = ["ResultsContract"]


class ResultsContract:
    """Sentences about the results of workitems."""

    def test_a_result_goes_to_the_results_key_and_to_whoever_waits_for_it(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.end_one(Done(Payload(b"[1]", "application/json")))
            (result,) = await bench.read("results")
            assert (result.body, result.content_type, result.correlation_id) == (b"[1]", "application/json", "1")
            assert result.headers["status"] == "succeeded"
            told = {"worker_type": result.type, "reference": result.reference, **result.headers}
            assert (told["worker_type"], told["reference"], told["attempt"]) == (TYPE, "order:1", 2)
            (reply,) = await bench.read(worker_queue("client"))
            assert (reply.body, reply.correlation_id) == (b"[1]", "question")
            assert await bench.is_empty(QUEUE)

        bench.send(
            item(id="1", correlation_id="question", reply_to=worker_queue("client"), reference="order:1", attempt=2)
        )
        bench.run(test)

    def test_a_result_of_none_is_not_sent(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.end_one(Done(None))
            assert await bench.is_empty("results")
            assert await bench.is_empty(QUEUE)

        bench.send(item(id="1", reply_to="results"))
        bench.run(test)

    def test_what_a_handler_published_is_stored_with_its_result(self, bench: Bench) -> None:
        async def test() -> None:
            sends = (Send(worker_queue("a"), item("1", id="x")), Send(worker_queue("b"), item("2", id="y")))
            await bench.end_one(Done(Payload(b"3"), sends))
            bodies = [(await bench.read(queue))[0].body for queue in (worker_queue("a"), worker_queue("b"), "results")]
            assert bodies == [b"1", b"2", b"3"]

        bench.send(item(id="1"))
        bench.run(test)

    def test_a_missing_reply_queue_harms_nobody(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.end_one(Done(Payload(b"1")))
            assert (await bench.read("results"))[0].correlation_id == "1"
            assert await bench.is_empty(QUEUE)

        bench.send(item(id="1", reply_to="reply.of.a.client.that.left"))
        bench.run(test)

    def test_a_failure_is_a_result_and_a_dead_letter(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.end_one(Failed("KeyError: 'x'", "Traceback ...", Payload(b"null")))
            (result,) = await bench.read("results")
            assert result.correlation_id == "1"
            assert (result.headers["status"], result.headers["error"]) == ("failed", "KeyError: 'x'")
            assert result.headers["traceback"] == "Traceback ..."
            (dead,) = await bench.read(DEAD_LETTERS)
            assert (dead.id, dead.body, dead.type, dead.reference) == ("1", b"work", TYPE, "order:1")
            told = {name: dead.headers[name] for name in ("reason", "detail", "attempts", "crashes", "from", "mine")}
            assert told == {"reason": "failed", "detail": "KeyError: 'x'", "attempts": 3, "crashes": 1, "from": QUEUE,
                            "mine": "kept"}  # fmt: skip
            assert await bench.is_empty(QUEUE)

        bench.send(item(b"work", id="1", reference="order:1", attempt=3, crashes=1, headers={"mine": "kept"}))
        bench.run(test)

    def test_without_dead_letters_there_is_only_the_result(self, bench: Bench) -> None:
        async def test() -> None:
            await bench.end_one(Failed("no"), replace(RULES, dead_letters=False))
            assert (await bench.read("results"))[0].headers["error"] == "no"
            assert await bench.is_empty(DEAD_LETTERS)

        bench.send(item(id="1"))
        bench.run(test)
