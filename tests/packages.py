"""The project's Debian packages, and that of the example plugin."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from servers import MissingService

TOP = Path(__file__).resolve().parent.parent
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NAMES = tuple(f"python-taskqueue-{part}" for part in ("common", "dispatcher", "extra", "workerpool"))
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "*.egg-info")


def build(source: Path, directory: Path) -> Path:
    """Build the packages of the source tree `source`, from a copy of it; the directory that they are in.

    Raises MissingService where Debian's tools for that are missing.
    """
    for tool in ("dpkg-buildpackage", "dh", "dh_python3", "pybuild", "lintian", "fakeroot"):
        if shutil.which(tool, path=PATH) is None:
            raise MissingService(f"{tool} is missing: tests/install-services deb")
    copy = directory / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    run("dpkg-buildpackage", "-rfakeroot", "-us", "-uc", directory=copy)
    return directory


def packages(directory: Path) -> dict[str, Path]:
    """Name to file of the packages in `directory`."""
    return {path.name.partition("_")[0]: path for path in sorted(directory.glob("*.deb"))}


def next_version(files: Sequence[Path], directory: Path) -> None:
    """Write packages as `files`, but of a later version, and with another default configuration, to `directory`."""
    for file in files:
        tree = directory / "tree"
        run("dpkg-deb", "--raw-extract", file, tree)
        control = tree / "DEBIAN" / "control"
        (version,) = re.findall(r"(?m)^Version: (.*)$", control.read_text())
        for path in (control, *tree.glob("usr/lib/python3/dist-packages/taskqueue-*/METADATA")):
            path.write_text(path.read_text().replace(version, f"{version}+next"))
        for path in tree.glob("etc/taskqueue/config.ini"):
            path.write_text(path.read_text() + "\n# A later version.\n")
        run(
            "dpkg-deb", "--root-owner-group", "--build", tree, directory / file.name.replace(version, f"{version}+next")
        )
        shutil.rmtree(tree)


def run(*command: object, directory: Path | None = None) -> str:
    """Run a command of the system, in an environment of nobody's, which must succeed; what it says."""
    words = [str(word) for word in command]
    environment = {"PATH": PATH, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "DEB_BUILD_OPTIONS": "noautodbgsym"}
    done = subprocess.run(
        words, cwd=directory, env=environment, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout[-20000:]}")
    return done.stdout
