"""Formats of third parties in real daemons: as users install them, and as bad as they come."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from installations import TOP, Installation
from system_store import SQLiteSystem

from taskqueue.broker import Options
from taskqueue.brokers import sqlite
from taskqueue.workitem import INCOMING, Workitem

FORM = "application/x-www-form-urlencoded"
CONFIG = """\
[DEFAULT]
workers = 0
[filestat]
workers = 1
"""


@pytest.fixture(scope="module")
def with_formats() -> Iterator[Installation]:
    """This project with formats of third parties beside it."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-", dir="/tmp"))  # not TMPDIR, which may be private
    plugins = ["examples/filestat", "examples/formdata", "tests/formats/rotten"]
    try:
        directory.chmod(0o755)
        yield Installation(directory, plugins=[TOP / plugin for plugin in plugins])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def send(system: SQLiteSystem, *workitems: Workitem, queue: str = INCOMING) -> None:
    producer = sqlite.open_broker(Options(url=system.url)).producer()
    try:
        producer.send(workitems, queue=queue)
    finally:
        producer.close()


def test_messages_in_a_third_partys_format_reach_handlers_and_rotten_formats_stop_nobody(
    with_formats: Installation,
) -> None:
    with SQLiteSystem(with_formats) as system:
        path = system.open_directory / "file"
        path.write_text("one\n")
        config = system.config(
            CONFIG, default_workitem_type=FORM, workitem_type_map="text/json = application/json, own = text/plain"
        )
        dispatcher, pool = system.dispatcher(config), system.workerpool(config, ready=1)
        form = f"path={path}".encode()
        with_header = {"headers": {"worker_type": "filestat"}}

        send(
            system,
            Workitem(id="form", body=b"worker_type=filestat&" + form, content_type=FORM),
            Workitem(id="default", body=b"worker_type=filestat&" + form),
            Workitem(id="header", body=form, content_type=FORM, **with_header),
            Workitem(id="default header", body=form, **with_header),
            Workitem(id="mapped", body=json.dumps(str(path)).encode(), content_type="text/json", **with_header),
            Workitem(id="mapped text", body=f"filestat {path}".encode(), content_type="own"),
            *(Workitem(id=f"rotten {n}", body=b"exit", content_type="application/x-rotten") for n in range(3)),
            *(Workitem(id=f"missing {n}", body=b"\xff", content_type="application/x-missing") for n in range(3)),
            Workitem(id="at work", body=b"raise", content_type="application/x-rotten", **with_header),
        )
        send(system, Workitem(id="bare", body=form, content_type=FORM), queue="worker_filestat")

        results = {result.properties.correlation_id: result for result in system.collect("results", 8)}
        letters = {letter.properties.message_id: letter for letter in system.collect("taskqueue.dead", 7)}

        failed = results.pop("at work")
        assert (failed.headers["status"], letters["at work"].body) == ("failed", b"raise")
        assert set(results) == {
            "form", "default", "header", "default header", "mapped", "mapped text", "bare"
        }  # fmt: skip
        assert {result.value["path"] for result in results.values()} == {str(path)}
        for name, body in (("rotten", b"exit"), ("missing", b"\xff")):
            for n in range(3):
                letter = letters[f"{name} {n}"]
                assert (letter.body, letter.properties.content_type) == (body, f"application/x-{name}")
                assert letter.headers["reason"] == "malformed"
                assert f"the format application/x-{name}" in letter.headers["detail"]
        pool.stop()
        dispatcher.stop()
        for log, names in (
            (dispatcher.log, ("rotten", "missing", "incomplete")),
            (pool.log, ("rotten",)),
        ):
            for name in names:
                assert log.count(f"the format application/x-{name} (") == 1
            assert log.count("Traceback") == len(names)
            assert "'application/json' = 'rotten_formats:Rotten' in workitems: this format is built in" in log


def test_a_configuration_that_names_a_format_that_is_not_installed_is_refused_by_those_that_need_it(
    with_formats: Installation,
) -> None:
    with SQLiteSystem(with_formats) as system:
        config = system.config(default_workitem_type="application/x-www-form-urlencode")
        expected = "[taskqueue] default_workitem_type = 'application/x-www-form-urlencode': no format for "

        for command in (["check-config"], ["dispatcher", "-f"], ["workerpool", "-f"]):
            done = system.run(*command, "-c", config)
            assert done.returncode == 6
            assert expected in done.stderr.decode()
            assert f"did you mean {FORM}?" in done.stderr.decode()
        assert system.run("send", "filestat", "-c", config).returncode == 0
