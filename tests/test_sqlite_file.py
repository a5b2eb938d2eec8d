"""What only a file can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from embedded import drain, run, send

from taskqueue.broker import Broker, connect
from taskqueue.brokers.sqlite.database import ENLARGE_AT, LOG_SIZE, Database
from taskqueue.brokers.sqlite.place import _file_system
from taskqueue.brokers.sqlite.schema import VERSION
from taskqueue.errors import BrokerError
from taskqueue.workitem import Workitem

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


class TestAFile:
    def test_that_is_another_program_s_is_left_alone(self, tmp_path: Path, url: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            connection.execute("CREATE TABLE orders (id)")

        with pytest.raises(BrokerError, match=r"queue\.db is another program's SQLite file; name another file"):
            send(url, b"work")

    def test_of_a_newer_version_is_left_alone(self, tmp_path: Path, url: str) -> None:
        send(url, b"work")
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            connection.execute(f"PRAGMA user_version = {VERSION + 1}")

        with pytest.raises(BrokerError, match=r"written by a newer taskqueue .* install that version again"):
            send(url, b"work")

    def test_that_several_make_at_the_same_time_is_everybody_s(self, tmp_path: Path) -> None:
        together = threading.Barrier(4)

        def opened(name: str) -> None:
            together.wait()
            Database(tmp_path / name).close()

        with ThreadPoolExecutor(4) as threads:
            for n in range(60):
                list(threads.map(opened, [f"{n}.db"] * 4))

    def test_that_is_none_of_sqlite_is_said_so(self, tmp_path: Path, url: str) -> None:
        (tmp_path / "queue.db").write_bytes(b"shopping list" * 100)

        with pytest.raises(BrokerError, match=r"queue\.db: it is no SQLite file; name another file"):
            send(url, b"work")

    def test_that_is_damaged_is_said_so(self, tmp_path: Path, url: str) -> None:
        send(url, *[b"x" * 1000] * 100)
        file = tmp_path / "queue.db"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(file.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        file.write_bytes(content)

        with pytest.raises(BrokerError, match=r"queue\.db: it is damaged; stop all daemons, and save"):
            send(url, b"work")

    def test_in_a_directory_that_does_not_exist_is_said_so(self, tmp_path: Path) -> None:
        with pytest.raises(BrokerError, match=r"there is no directory .*nowhere; make it, or name another file"):
            send(f"sqlite:///{tmp_path}/nowhere/queue.db", b"work")

    def test_on_a_network_file_system_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_text(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
            "30 22 0:50 / /mnt/a\\040share rw,relatime shared:5 - nfs4 server:/export rw\n"
        )
        assert _file_system(Path("/mnt/a share/queues"), mounts) == "nfs4"
        assert _file_system(Path("/mnt/elsewhere"), mounts) == "ext4"
        monkeypatch.setattr("taskqueue.brokers.sqlite.place._file_system", lambda directory: "nfs4")

        with pytest.raises(BrokerError, match=r"network file system \(nfs4\).*use amqp:// or postgresql://"):
            Database(tmp_path / "queue.db")

    @root_only
    def test_that_can_not_be_written_is_said_so(self, small_disk: Path) -> None:
        url = f"sqlite:///{small_disk}/queue.db"
        send(url, b"work")
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

        with pytest.raises(BrokerError, match=r"Read-only file system|can't be written|can't be opened"):
            send(url, b"work")

    @root_only
    def test_on_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(self, small_disk: Path) -> None:
        url = f"sqlite:///{small_disk}/queue.db"
        send(url, *[b"x" * 10_000] * 5)
        (ballast := small_disk / "ballast").touch()
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)

        with pytest.raises(BrokerError, match=r"the disk is full; nothing of this was stored"):
            send(url, *[b"y" * 10_000] * 50)

        async def work(broker: Broker) -> int:
            consumer = broker.consumer("worker_t", reserve=100)
            receiving = asyncio.create_task(drain(consumer, 5))
            await asyncio.sleep(0.5)  # it may get on or not: what counts is that nothing is lost
            ballast.unlink()
            return len(await receiving)

        assert run(url, work) == 5

    def test_has_a_log_that_need_not_grow_where_much_is_written(self, tmp_path: Path, url: str) -> None:
        log = tmp_path / "queue.db-wal"
        producer = connect(url).producer()
        sizes = []
        for _ in range(2 * ENLARGE_AT):
            producer.send([Workitem(body=b"1", type="t")])
            sizes.append(log.stat().st_size)
        assert sizes[0] < LOG_SIZE // 2
        assert sizes[ENLARGE_AT:] == [LOG_SIZE] * ENLARGE_AT
        shutil.copytree(tmp_path, tmp_path / "after a loss of power")
        producer.close()
        with contextlib.closing(sqlite3.connect(tmp_path / "after a loss of power" / "queue.db")) as connection:
            assert connection.execute("SELECT count(*) FROM workitems").fetchone() == (2 * ENLARGE_AT,)

    @pytest.mark.parametrize("url", ["sqlite:", "sqlite:///", "sqlite://host/file", "sqlite:///f?journal=off"])
    def test_is_named_by_a_url_with_three_slashes(self, url: str) -> None:
        with pytest.raises(BrokerError, match="SQLite URL"):
            connect(url)
