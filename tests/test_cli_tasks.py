"""`taskqueue tasks`, `show` and `dead list` of what clients call, over a real file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shop_tasks
from tasking import PATIENCE

import taskqueue
from taskqueue import cli


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


def shown(capsys: pytest.CaptureFixture[str], url: str, *words: str) -> list[str]:
    assert cli.main([*words, "--url", url]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_name_of_a_task_is_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with taskqueue.connect(url) as queue:
        id = queue.tasks.shop.mail.send(1).id

    assert [line.split()[:4] for line in shown(capsys, url, "tasks")] == [
        ["ID", "TYPE", "TASK", "STATE"], [id, "default", "shop.mail.send", "waiting"],
    ]  # fmt: skip
    (row,), (record,) = shown(capsys, url, "tasks", "--json"), shown(capsys, url, "show", id, "--json")
    assert json.loads(row)["task"] == json.loads(record)["task"] == "shop.mail.send"
    assert "task        shop.mail.send" in shown(capsys, url, "show", id)


def test_the_name_of_a_task_that_was_given_up_is_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with taskqueue.connect(url) as queue, taskqueue.running(queue, shop_tasks.space, threads=1):
        id = queue.submit(shop_tasks.fail).id
        assert queue.deferred(id).exception(PATIENCE)

    header, row = shown(capsys, url, "dead", "list")
    assert (header.split()[:4], row.split()[:4]) == (
        ["ID", "TYPE", "TASK", "REASON"], [id, "default", "shop.fail", "failed"],
    )  # fmt: skip
    (row,) = shown(capsys, url, "dead", "list", "--json")
    assert json.loads(row)["task"] == "shop.fail"


def test_where_nobody_calls_tasks_there_is_no_column_for_them(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with taskqueue.connect(url) as queue:
        id = queue.send("invoice", 1)

    assert shown(capsys, url, "tasks")[0].split()[:3] == ["ID", "TYPE", "STATE"]
    (row,) = shown(capsys, url, "tasks", "--json")
    assert json.loads(row)["task"] == ""
    assert not any(line.startswith("task") for line in shown(capsys, url, "show", id))
