"""Installations of this project as users have them: not editable, beside separately installed plugins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

TOP = Path(__file__).resolve().parent.parent
SYSTEM_PYTHON = Path("/usr/bin/python3")
OLDEST_PYTHON = (3, 11)
EXTRAS = ("postgresql",)
BUILD = """\
import sys
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""


def plugin_projects() -> list[Path]:
    """The directories of the plugin packages that tests install."""
    found = [*sorted((TOP / "tests" / "plugins").iterdir()), *sorted((TOP / "examples").iterdir())]
    # Of the example of a Debian package such a package is made (tests/packages.py).
    return [each for each in found if (each / "pyproject.toml").exists() and not (each / "debian").exists()]


class Installation:
    """A virtual environment that every user can read, with the project and plugins in it.

    Nothing is downloaded: dependencies are copied from the environment that runs the tests.

    wheels: where those of all packages are; TASKQUEUE_TEST_WHEELS names those that another test process has built.
    """

    def __init__(self, directory: Path, *, plugins: Sequence[Path] | None = None) -> None:
        """Make the environment below `directory`, which must be empty and readable by everybody."""
        umask = os.umask(0o022)
        try:
            self.prefix = directory / "venv"
            # Without pip: half of the time that making an environment costs.
            _run(usable_python(), "-m", "venv", "--without-pip", self.prefix)
            self.python = self.bin("python")
            site_packages = _run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
            self.site_packages = Path(site_packages.strip())
            self._copy_dependencies("taskqueue")
            built = os.environ.get("TASKQUEUE_TEST_WHEELS") if plugins is None else None
            self.wheels = Path(built) if built else directory / "build" / "wheels"
            if not built:
                build_wheels([TOP, *(plugin_projects() if plugins is None else plugins)], directory / "build")
            self.install(*sorted(self.wheels.iterdir()))
            if sabotage := os.environ.get("TASKQUEUE_SABOTAGE"):
                self.sabotage(sabotage)
        finally:
            os.umask(umask)

    def sabotage(self, name: str) -> None:
        """Have every interpreter of this installation import `tests/sabotage/NAME.py` when it starts."""
        shutil.copy(TOP / "tests" / "sabotage" / f"{name}.py", self.site_packages / "taskqueue_sabotage.py")
        (self.site_packages / "taskqueue_sabotage.pth").write_text("import taskqueue_sabotage\n")

    def bin(self, name: str) -> Path:
        """The path of an installed executable."""
        return self.prefix / "bin" / name

    def _copy_dependencies(self, project: str) -> None:
        for distribution in run_time_dependencies(project):
            for file in distribution.files or ():
                if ".." in file.parts or file.suffix == ".pyc":
                    continue  # scripts, and what the other interpreter compiled
                if not Path(file.locate()).exists():
                    continue  # a file of the sources, named by what pip installs where there is no module `wheel`
                target = self.site_packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)
        # Now, because those who import it later may not write here, and would compile it at every start.
        _run(self.python, "-m", "compileall", "-q", self.site_packages)

    def install(self, *wheels: Path) -> None:
        """Install or upgrade packages with pip."""
        self.pip("install", "--no-index", "--no-deps", "--force-reinstall", *wheels)

    def pip(self, *arguments: object) -> None:
        """Run pip on this environment."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", self.python]
        _run(*pip, *arguments)


def usable_python() -> Path:
    """An interpreter that other users can use as well, where the system has one."""
    check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    if SYSTEM_PYTHON.exists() and subprocess.run([SYSTEM_PYTHON, "-c", check], check=False).returncode == 0:
        return SYSTEM_PYTHON
    return Path(sys.executable)


def run_time_dependencies(project: str) -> Iterator[metadata.Distribution]:
    """Yield what `project` and its EXTRAS need at run time, but not on Windows, with what that needs in turn."""
    waiting: list[tuple[str, Iterable[str]]] = [(project, EXTRAS)]
    seen = {project}
    while waiting:
        name, extras = waiting.pop()
        for requirement in map(Requirement, metadata.distribution(name).requires or ()):
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if needed and requirement.name not in seen:
                seen.add(requirement.name)
                waiting.append((requirement.name, requirement.extras))
                yield metadata.distribution(requirement.name)


def build_wheels(projects: Sequence[Path], directory: Path) -> list[Path]:
    """Build all wheels at once, from copies: a build writes into its source tree, and trees are shared."""
    ignore = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "tests", "docs")
    wheels = directory / "wheels"
    wheels.mkdir(parents=True)
    builds = []
    for number, project in enumerate(projects):
        copy = directory / f"{number}-{project.name}"
        shutil.copytree(project, copy, ignore=ignore)
        command = [sys.executable, "-c", BUILD, str(wheels)]
        builds.append(subprocess.Popen(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [build.communicate()[0] for build in builds]
    for project, build, output in zip(projects, builds, outputs, strict=True):
        if build.returncode != 0:
            raise RuntimeError(f"building {project} failed:\n{output}")
    return sorted(wheels.iterdir())


def _run(*command: object) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout
