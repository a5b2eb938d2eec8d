"""The distributions: complete, and working where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from test_readme import pip

TOP = Path(__file__).resolve().parent.parent
BUILT = ("*.egg-info", "build", "dist", "__pycache__", ".*")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout after `make dist`, but for the virtual environment."""
    copy = tmp_path_factory.mktemp("dist") / "checkout"
    shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*BUILT))
    subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=copy, check=True, capture_output=True)
    yield copy / "dist"


def test_the_source_distribution_has_everything(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}

    here = {
        str(path.relative_to(dist.parent))
        for path in dist.parent.rglob("*")
        if path.is_file() and "dist" not in path.parts and not any(part.endswith(".egg-info") for part in path.parts)
    }

    assert {"Makefile", "tests/conftest.py", "docs/protocol.md", "examples/filestat/filestat.py"} <= here
    assert here - shipped == set()


def test_the_wheel_works_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), **pip()}
    url = f"sqlite:///{tmp_path}/queue.db"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)

    def run(*command: str) -> str:
        path, *arguments = command
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / path, *arguments],
            env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", str(next(dist.glob("*.whl"))))
    assert run("taskqueue", "--version") == f"taskqueue {metadata.version('taskqueue')}\n"
    assert run("taskqueue", "send", "any", "body", "--id", "mine", "--url", url) == "mine\n"
    assert "sqlite" in run("taskqueue", "check-config", "--url", url)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_tests_pass_from_the_source_distribution(dist: Path, tmp_path: Path) -> None:
    # Not by tarfile: some versions of Python warn about a call without a filter, others know none.
    subprocess.run(["tar", "-xf", next(dist.glob("*.tar.gz")), "-C", tmp_path], check=True)
    (unpacked,) = tmp_path.iterdir()

    done = subprocess.run(["make", "check"], cwd=unpacked, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
