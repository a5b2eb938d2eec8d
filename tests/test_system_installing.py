"""Plugins and formats that come, change and go while daemons run: real pip, real eggs, daemons in the background."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from background import LOGGING, Background, background
from installations import TOP, Installation, build_wheels
from system import until
from system_store import SQLiteSystem

from taskqueue.watch import is_dpkg_busy

pytestmark = pytest.mark.daemons

GUEST = """
from taskqueue.worker import BaseWorker
class Worker(BaseWorker):
    def handle_task(self, body):
        return "{version}"
"""
FORMAT = """
from taskqueue.formats.contract import Extracted
class Format:
    def extract(self, workitem):
        return Extracted(type="echo", body=b"{version}", content_type="text/plain", reference="")
    def value(self, body, content_type):
        return "{version}"
"""
PROJECT = """
[build-system]
requires = ["setuptools>=66"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "{version}"
[tool.setuptools]
py-modules = ["{name}"]
[project.entry-points."{group}"]
"{entry}" = "{name}:{attribute}"
"""
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def project(directory: Path, name: str, version: str, code: str, *, group: str, entry: str, attribute: str) -> Path:
    place = directory / f"{name}-{version}"
    place.mkdir()
    (place / f"{name}.py").write_text(code.format(version=version))
    text = PROJECT.format(name=name, version=version, group=group, entry=entry, attribute=attribute)
    (place / "pyproject.toml").write_text(text)
    return place


@pytest.fixture(scope="module")
def wheels() -> Iterator[dict[tuple[str, str], Path]]:
    """Name and version -> wheel: a plugin `guest` and a format `text/x-guest`, each in two versions."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-wheels-", dir="/tmp"))
    try:
        guest = {"group": "worker.plugins", "entry": "guest", "attribute": "Worker.factory"}
        form = {"group": "workitems", "entry": "text/x-guest", "attribute": "Format"}
        projects = [
            *(project(directory, "guest", version, GUEST, **guest) for version in ("1.0", "2.0")),
            *(project(directory, "guestformat", version, FORMAT, **form) for version in ("1.0", "2.0")),
        ]
        built = build_wheels(projects, directory / "build")
        yield {(path.name.split("-")[0], path.name.split("-")[1]): path for path in built}
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    """An installation that tests may change."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        yield Installation(directory, plugins=[TOP / "tests" / "plugins" / "plain"])
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def system(own: Installation) -> Iterator[SQLiteSystem]:
    with SQLiteSystem(own) as system:
        yield system


CONFIG = "[DEFAULT]\nworkers = 0\n[echo]\nworkers = 2\n[guest]\nworkers = 2\n"


@pytest.fixture
def log(system: SQLiteSystem) -> Path:
    return system.directory / "log"


@pytest.fixture
def pool(system: SQLiteSystem, log: Path) -> Iterator[Background]:
    with background(system, "workerpool", system.config(CONFIG + LOGGING.format(path=str(log)))) as daemon:
        assert daemon.done.returncode == 0, daemon.done.stderr
        yield daemon
        daemon.stop()
        assert "Traceback" not in log.read_text()


def answer(system: SQLiteSystem, type: str = "guest") -> str:
    done = system.run("send", type, "x", "--wait", "--url", system.url)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def timed(what: str, began: float, condition: Callable[[], object]) -> None:
    until(condition)
    print(f"{what}: {time.monotonic() - began:.1f} s")


def test_what_pip_installs_upgrades_and_removes_is_started_replaced_and_drained(
    system: SQLiteSystem, pool: Background, own: Installation, wheels: dict[tuple[str, str], Path], log: Path
) -> None:
    """And nothing else: the processes of other plugins stay, as does the carrier."""
    carriers, others = pool.carriers, set(pool.workers)
    assert len(others) == 2

    own.install(wheels["guest", "1.0"])
    timed("installed", time.monotonic(), lambda: len(pool.workers) == 4)
    first = set(pool.workers) - others
    assert answer(system) == "1.0"

    own.install(wheels["guest", "2.0"])
    began = time.monotonic()
    timed("upgraded", began, lambda: len(pool.workers) == 4 and not first & set(pool.workers))
    assert answer(system) == "2.0"
    second = set(pool.workers) - others

    own.install(wheels["guest", "2.0"])  # the same version once more may have other code
    began = time.monotonic()
    timed("installed again", began, lambda: len(pool.workers) == 4 and not second & set(pool.workers))

    own.pip("uninstall", "--yes", "guest")
    timed("removed", time.monotonic(), lambda: set(pool.workers) == others)
    assert pool.carriers == carriers
    assert answer(system, "echo") == "x"
    assert pool.status["reloads"] == 0  # nobody asked for one
    assert "died" not in log.read_text()


def test_a_zipped_egg_of_an_easy_install_pth_comes_changes_and_goes(
    system: SQLiteSystem, pool: Background, own: Installation, log: Path
) -> None:
    """An interpreter that has become a daemon can't read eggs that it had opened before."""
    others = set(pool.workers)
    egg, pth = own.site_packages / "guest-py3.egg", own.site_packages / "easy-install.pth"

    def write(version: str) -> None:
        with zipfile.ZipFile(egg.with_suffix(".new"), "w") as file:
            file.writestr("EGG-INFO/PKG-INFO", f"Metadata-Version: 2.1\nName: guest\nVersion: {version}\n")
            file.writestr("EGG-INFO/entry_points.txt", "[worker.plugins]\nguest = guest:Worker.factory\n")
            file.writestr("guest.py", GUEST.format(version=version))
        egg.with_suffix(".new").chmod(0o644)
        egg.with_suffix(".new").replace(egg)

    try:
        write("egg one")
        pth.write_text("./guest-py3.egg\n")
        until(lambda: len(pool.workers) == 4)
        assert answer(system) == "egg one"
        first = set(pool.workers) - others

        with background(system, "dispatcher", system.directory / "config.ini") as dispatcher:  # the egg is there
            assert (dispatcher.done.returncode, dispatcher.done.stderr) == (0, "")
            write("egg two")
            until(lambda: len(pool.workers) == 4 and not first & set(pool.workers))
            assert answer(system) == "egg two"
            egg.unlink()
            pth.unlink()
            until(lambda: set(pool.workers) == others)
            assert system.run("reload", "--wait", "-p", dispatcher.pid_file).returncode == 0
            dispatcher.stop()
        assert answer(system, "echo") == "x"
    finally:
        egg.unlink(missing_ok=True)
        pth.unlink(missing_ok=True)
        until(lambda: set(pool.workers) == others)


def test_formats_come_and_change_in_dispatcher_and_workers(
    system: SQLiteSystem, pool: Background, own: Installation, wheels: dict[tuple[str, str], Path]
) -> None:
    carriers, before = pool.carriers, set(pool.workers)
    text = CONFIG + LOGGING.format(path=str(system.directory / "dispatcher.log"))
    with background(system, "dispatcher", system.config(text)) as dispatcher:
        pid = dispatcher.pid

        def comes_back_as(version: str) -> None:
            """The queue's name as type: it goes through the dispatcher."""
            code = (
                "import sys\nfrom taskqueue.broker import connect\nfrom taskqueue.workitem import INCOMING, Workitem\n"
                "producer = connect(sys.argv[1]).producer()\n"
                "producer.send([Workitem(body=b'?', type='', content_type='text/x-guest')], queue=INCOMING)\n"
            )
            subprocess.run([own.python, "-c", code, system.url], check=True, env=system.environment())
            assert system.collect("results", 1)[0].body == version.encode()

        try:
            own.install(wheels["guestformat", "1.0"])
            until(lambda: len(pool.workers) == 2 and not before & set(pool.workers))
            until(lambda: (system.directory / "dispatcher.log").read_text().count("going on with the versions") == 1)
            comes_back_as("1.0")
            first = set(pool.workers)

            own.install(wheels["guestformat", "2.0"])
            until(lambda: len(pool.workers) == 2 and not first & set(pool.workers))
            until(lambda: (system.directory / "dispatcher.log").read_text().count("going on with the versions") == 2)
            comes_back_as("2.0")
        finally:
            own.pip("uninstall", "--yes", "guestformat")
        assert pool.carriers == carriers
        assert dispatcher.status["pid"] == pid and dispatcher.pid_file.read_text() == f"{pid}\n"
        dispatcher.wait_status(lambda status: status["state"] == "running")
        until(lambda: (system.directory / "dispatcher.log").read_text().count("going on with the versions") == 3)
        dispatcher.wait_status(lambda status: status["state"] == "running")
        dispatcher.stop()
        assert not dispatcher.pid_file.exists() and not dispatcher.status_file.exists()


def test_dpkg_is_busy_while_another_process_holds_its_lock(tmp_path: Path) -> None:
    lock, missing = tmp_path / "lock", tmp_path / "lock-frontend"
    lock.touch()
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    assert not is_dpkg_busy((missing, lock))

    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert is_dpkg_busy((missing, lock))
        holder.communicate()

    assert not is_dpkg_busy((missing, lock))


def test_a_manager_that_has_nothing_to_do_costs_next_to_nothing(system: SQLiteSystem, pool: Background) -> None:
    def spent() -> float:
        fields = Path(f"/proc/{pool.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = spent(), time.monotonic()
    until(lambda: time.monotonic() - began > 5)

    share = (spent() - before) / (time.monotonic() - began)
    print(f"{share:.2%} of a processor")
    assert share < 0.02
