"""`taskqueue maintain` and `taskqueue stats`, over a real file."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from taskqueue import cli
from taskqueue.broker import Ended, connect
from taskqueue.outcome import Done, Failed
from taskqueue.record import Run
from taskqueue.workitem import Workitem


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A file in which one workitem has succeeded and one failed, after 2 seconds each."""
    url = f"sqlite:///{tmp_path}/queue.db"

    async def work() -> None:
        broker = connect(url)
        producer = broker.producer()
        producer.send([Workitem(body=b"", type="invoice") for _ in range(2)])
        producer.close()
        consumer = broker.consumer("worker_invoice", reserve=2)
        for delivery, outcome in zip(await consumer.receive(limit=2), (Done(None), Failed("no")), strict=True):
            await consumer.settle([Ended(delivery, outcome, run=Run("h", "u", 1, 5e9, 5e9 + 2, 0.0, None))])
        await broker.close()

    asyncio.run(work())
    return url


def test_statistics_for_people_are_a_table(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stats", "--url", url]) == 0

    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:6] == ["TYPE", "SUCCEEDED", "FAILED", "DEAD", "CANCELLED", "EXPIRED"]
    assert row.split()[:6] == ["invoice", "1", "1", "0", "0", "0"]
    assert row.split()[-1] == "s" and 1.8 < float(row.split()[-2]) < 2.2


@pytest.mark.parametrize("options", [["--since", "2h"], ["--type", "invoice", "--hourly"]])
def test_statistics_for_scripts_are_an_object_a_line(
    url: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["stats", "--json", "--url", url, *options]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["type"] for row in rows] == ["invoice"] * len(rows)
    assert sum(row["succeeded"] for row in rows) == sum(row["failed"] for row in rows) == 1
    assert 1.8 < rows[0]["ran"]["p99"] < 2.2
    assert ("hour" in rows[0]) == ("--hourly" in options)


def test_statistics_of_what_is_not_there_are_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stats", "--json", "--type", "other", "--url", url]) == 0
    assert capsys.readouterr().out == ""


def test_maintain_says_what_it_did(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(connect(url).producer()) as producer:
        producer.send([Workitem(body=b"") for _ in range(12)], queue="results")
    config = tmp_path / "config.ini"
    config.write_text("[taskqueue]\nresults_max_length = 10\n")

    assert cli.main(["maintain", "--json", "-c", str(config), "--url", url]) == 0
    done = json.loads(capsys.readouterr().out)
    assert cli.main(["maintain", "-c", str(config), "--url", url]) == 0

    assert (done["busy"], done["results"], done["records"]) == (False, 2, 0)
    assert capsys.readouterr().out == "there was nothing to do\n"


def test_a_broker_without_records_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("maintain", "stats"):
        assert cli.main([command, "--url", "amqp://localhost"]) == 1
        assert "postgresql" in capsys.readouterr().err
