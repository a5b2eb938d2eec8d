"""Debians of their own for tests of the packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installations import build_wheels
from machine import Machine, make_base
from packages import NAMES, TOP, next_version
from packages import packages as found
from servers import MissingService, missing

PLUGINS = ("inspect", "plain", "worker2")
PREVIOUS = os.environ.get("TASKQUEUE_PREVIOUS", "")
DEFAULT = (TOP / "config.ini.example").read_text()


@pytest.fixture(scope="session")
def files(packages: Path) -> dict[str, Path]:
    """Name to file of the project's packages."""
    return found(packages)


@pytest.fixture(scope="session")
def later(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same of a later version."""
    directory = tmp_path_factory.mktemp("later")
    next_version(list(found(packages).values()), directory)
    return found(directory)


@pytest.fixture(scope="session")
def earlier(files: dict[str, Path]) -> dict[str, Path]:
    """What upgrades begin with: the packages in the directory TASKQUEUE_PREVIOUS; else those of `files`."""
    return found(Path(PREVIOUS)) if PREVIOUS else files


@pytest.fixture(scope="session")
def example(example_package: Path) -> Path:
    """The package of the example plugin."""
    (package,) = found(example_package).values()
    return package


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of some of the tests' plugins."""
    projects = [TOP / "tests" / "plugins" / name for name in PLUGINS]
    built = build_wheels(projects, tmp_path_factory.mktemp("wheels"))
    return {path.name.removeprefix("taskqueue_test_").partition("-")[0]: path for path in built}


@pytest.fixture(scope="session")
def base(files: dict[str, Path]) -> Iterator[Path]:
    """The file system that all machines begin with."""
    directory = Path(tempfile.mkdtemp(prefix="taskqueue-deb-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)  # by other users in it, too
        make_base(directory / "base", list(files.values()))
        yield directory / "base"
    except MissingService as reason:
        missing(reason)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def debian(base: Path) -> Callable[..., contextlib.AbstractContextManager[Machine]]:
    """Make a fresh machine, by name and with the arguments of Machine; all of it is gone afterwards."""

    @contextlib.contextmanager
    def make(name: str, *, booted: bool = False) -> Iterator[Machine]:
        with Machine(base, name, booted=booted) as machine:
            yield machine

    return make


@pytest.fixture(scope="session")
def bare(debian: Callable[..., contextlib.AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """A Debian without systemd as its first process, in which RabbitMQ and syslog run."""
    with debian("bare") as machine:
        machine.run("/etc/init.d/inetutils-syslogd", "start")
        machine.run("/etc/init.d/rabbitmq-server", "start")
        yield machine
        print(machine.run("tail", "-n", "200", "/var/log/syslog"))


@pytest.fixture(scope="session")
def installed(bare: Machine, files: dict[str, Path]) -> Machine:
    """The same with all packages."""
    bare.install(*(files[name] for name in NAMES))
    return bare


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    """The same; afterwards its configuration and its plugins are those of the packages again."""
    yield installed
    restore(installed)


def restore(machine: Machine) -> None:
    """Undo what a test did to configuration and plugins."""
    machine.write("/etc/taskqueue/config.ini", DEFAULT)
    for path in machine.path("/usr/local/lib/python3.11/dist-packages").glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    machine.run("/etc/init.d/rabbitmq-server", "start", status=None)
    for daemon in ("dispatcher", "workerpool"):
        machine.run(f"/etc/init.d/python-taskqueue-{daemon}", "restart")
