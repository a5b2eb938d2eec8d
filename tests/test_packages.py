"""The Debian packages, as far as it shows without installing them (that is in tests/deb)."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packages import NAMES, NOT_SOURCE, TOP, run
from packages import packages as found

MAN_PAGES = {"man1/taskqueue.1", "man5/taskqueue.ini.5", "man8/taskqueue-dispatcher.8", "man8/taskqueue-workerpool.8"}
EXPOSURE = {"dispatcher": 50, "workerpool": 75}
DEBIAN = {"pika": "python3-pika", "python-daemon": "python3-daemon"}  # else python3- and the name


def contents(package: Path) -> dict[str, str]:
    """Path to mode and owner of what a package has."""
    listed = [line.split(maxsplit=5) for line in run("dpkg-deb", "--contents", package).splitlines()]
    return {line[5].removeprefix("."): f"{line[0]} {line[1]}" for line in listed}


def field(package: Path, name: str) -> list[str]:
    """A field of a package's control file that is a list."""
    return [each.strip() for each in run("dpkg-deb", "--field", package, name).split(",")]


def test_there_are_four_packages_and_the_source(packages: Path) -> None:
    assert tuple(found(packages)) == NAMES
    assert [path.suffix for path in packages.glob("*.dsc")] == [".dsc"]


def test_lintian_finds_no_error_and_no_warning_in_them(packages: Path) -> None:
    (changes,) = packages.glob("*.changes")

    said = run("lintian", "--allow-root", "--fail-on", "error,warning", changes)

    assert re.findall("(?m)^[EW]: .*", said) == []


def test_each_has_what_it_is_for(packages: Path) -> None:
    common, dispatcher, extra, workerpool = (contents(package) for package in found(packages).values())

    assert {"/usr/bin/taskqueue", "/usr/lib/python3/dist-packages/taskqueue/worker.py"} <= common.keys()
    assert {f"/usr/share/man/{page}.gz" for page in MAN_PAGES} <= common.keys()
    assert common["/etc/taskqueue/conf.d/"] == "drwxr-xr-x root/root"
    assert [name for name in common if "test" in name.rpartition("/")[2] or "dispatcher" in name.split("/")] == []
    for name, content in (("dispatcher", dispatcher), ("workerpool", workerpool)):
        assert {
            f"/usr/bin/taskqueue-{name}",
            f"/etc/init.d/python-taskqueue-{name}",
            f"/lib/systemd/system/python-taskqueue-{name}.service",
        } == {path for path in content if not path.endswith("/") and not path.startswith("/usr/share/doc/")}
    modules = "/usr/lib/python3/dist-packages"
    assert {f"{modules}/filestat.py", f"{modules}/formdata.py"} < extra.keys()
    assert {f"{modules}/taskqueue_{name}-1.0.dist-info/entry_points.txt" for name in ("filestat", "formdata")} < set(
        extra
    )
    assert "/usr/share/doc/python-taskqueue-extra/examples/plugin-deb/debian/control" in extra
    assert [path for content in (common, extra) for path in content if "pycache" in path or "/build/" in path] == []


def test_the_configuration_is_the_example_and_the_administrators_to_change(packages: Path, tmp_path: Path) -> None:
    common = found(packages)["python-taskqueue-common"]

    run("dpkg-deb", "--raw-extract", common, tmp_path / "tree")

    assert (tmp_path / "tree/DEBIAN/conffiles").read_text() == "/etc/taskqueue/config.ini\n"
    assert (tmp_path / "tree/etc/taskqueue/config.ini").read_text() == (TOP / "config.ini.example").read_text()


def test_they_depend_on_what_the_project_depends_on(packages: Path) -> None:
    files = found(packages)
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    needed = {f"python3 (>= {project['requires-python'].removeprefix('>=')})"}
    for dependency in project["dependencies"]:
        name, _, version = dependency.partition(">=")
        needed.add(f"{DEBIAN.get(name, f'python3-{name}')} (>= {version})")

    assert set(field(files["python-taskqueue-common"], "Depends")) == needed | {"adduser"}
    for name in NAMES[1:]:
        version = field(files[name], "Version")[0]
        assert f"python-taskqueue-common (= {version})" in field(files[name], "Depends")
    for name in ("python-taskqueue-dispatcher", "python-taskqueue-workerpool"):
        assert field(files[name], "Recommends") == ["rabbitmq-server (>= 3.10)"]


def test_what_they_build_on_is_what_the_tests_install() -> None:
    """Else `make deb` would fail on a fresh machine."""
    needed = re.findall(r"(?m)^ ([a-z0-9-]+)", (TOP / "debian/control").read_text().partition("Standards-")[0])
    installer = (TOP / "tests/install-services").read_text()

    assert [name for name in needed if name.removesuffix("-compat") not in installer] == []


@pytest.mark.parametrize("daemon", EXPOSURE)
def test_the_units_are_hardened(packages: Path, daemon: str) -> None:
    """As `systemd-analyze security` sees it, which fails above the threshold."""
    unit = TOP / "debian" / f"python-taskqueue-{daemon}.service"

    said = run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[daemon]}", unit)

    assert "Overall exposure level" in said


@pytest.mark.parametrize("daemon", EXPOSURE)
def test_the_init_scripts_are_of_the_shell_that_debian_has(packages: Path, tmp_path: Path, daemon: str) -> None:
    run("dpkg-deb", "--raw-extract", found(packages)[f"python-taskqueue-{daemon}"], tmp_path / "tree")
    script = tmp_path / f"tree/etc/init.d/python-taskqueue-{daemon}"

    run("dash", "-n", script)

    assert "@" not in script.read_text().replace('"$@"', "")


def test_the_executables_start_without_looking_for_entry_points(packages: Path, tmp_path: Path) -> None:
    """A zipped egg that the metadata finder holds open is closed when a daemon goes to the background."""
    run("dpkg-deb", "--raw-extract", found(packages)["python-taskqueue-workerpool"], tmp_path / "tree")
    executable = tmp_path / "tree/usr/bin/taskqueue-workerpool"

    assert executable.read_text().startswith("#!/usr/bin/python3\n")
    assert "from taskqueue.cli import workerpool" in executable.read_text()
    assert "metadata" not in executable.read_text()


def test_the_example_of_a_plugins_package_builds_without_error_and_warning(
    example_package: Path,
) -> None:
    (changes,) = example_package.glob("*.changes")

    said = run("lintian", "--allow-root", "--fail-on", "error,warning", changes)

    assert re.findall("(?m)^[EW]: .*", said) == []
    (package,) = found(example_package).values()
    assert "/etc/taskqueue/conf.d/wordcount.ini" in contents(package)
    assert "python-taskqueue-common" in field(package, "Depends")


@pytest.mark.skipif(not (TOP / ".git").exists(), reason="not a checkout")
def test_a_build_leaves_nothing_in_a_checkout_that_git_would_see(packages: Path, tmp_path: Path) -> None:
    source = packages / "source"
    environment = {**os.environ, "GIT_DIR": str(tmp_path / "git"), "GIT_WORK_TREE": str(source)}

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], env=environment, check=True, capture_output=True, text=True).stdout

    def tracked_here(path: str) -> bool:
        return not any(Path(path).match(pattern) for pattern in NOT_SOURCE)

    git("init", "--quiet")
    (source / ".gitignore").write_text((TOP / ".gitignore").read_text())
    new = [path for path in git("ls-files", "--others", "--exclude-standard").splitlines() if tracked_here(path)]

    assert [path for path in new if not (TOP / path).exists()] == []
