"""A Debian 12 of its own: a root file system with its own processes, users, and network, which leads nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import MissingService
from system import until

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
INSIDE = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
SOFTWARE = (
    "amqp-tools", "dbus", "inetutils-syslogd", "man-db", "procps", "python3-pip", "python3-venv", "rabbitmq-server",
    "systemd", "systemd-sysv",
)  # fmt: skip
MODULES = "/usr/local/lib/python3.11/dist-packages"
FIRST = ("(sd-stubinit)", "systemd")  # what the first process is called, once it is that
CABLE = "cable"
CGROUPS = ("payload", "supervisor")


def make_base(root: Path, files: Sequence[Path]) -> None:
    """Make the file system that machines begin with: Debian, RabbitMQ, and all that apt needs to install `files`.

    That is the only time that the network is used.  Raises MissingService.
    """
    for tool in ("debootstrap", "ip", "systemd-nspawn"):
        if shutil.which(tool, path=PATH) is None:
            raise MissingService(f"{tool} is missing: tests/install-services test-deb")
    if os.geteuid() != 0:
        raise MissingService("only root can make a Debian of its own")
    _run(["debootstrap", "--variant=minbase", "bookworm", str(root), *mirrors()[:1]])
    _run(["tar", "--create", "--use-compress-program=gzip --fast", f"--file={bare(root)}", f"--directory={root}", "."])
    (root / "etc/apt/sources.list").write_text("".join(f"deb {mirror} bookworm main\n" for mirror in mirrors()))
    (root / "etc/apt/apt.conf.d/99keep").write_text('Binary::apt::APT::Keep-Downloaded-Packages "true";\n')
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")  # nobody keeps it for long
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 debian\n")
    policy(root, 101)
    with Machine(root, lasting=True) as machine:
        machine.run("apt-get", "update")
        machine.run("apt-get", "install", "--yes", "--no-install-recommends", *SOFTWARE)
        inside = machine.put(*files)
        machine.run("apt-get", "install", "--yes", "--no-install-recommends", "--download-only", *inside)
        machine.run("rm", *inside)
    policy(root, 0)


def bare(root: Path) -> Path:
    """The archive of nothing but Debian, which is made along with `root`."""
    return root.with_suffix(".tar.gz")


def mirrors() -> list[str]:
    """Where this host has its packages from; Debian's own mirror where it does not say."""
    said = _run(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT) $(CREATED_BY)"])
    found = [line.split()[0] for line in said.splitlines() if line.split()[1:] == ["bookworm", "main", "Packages"]]
    return list(dict.fromkeys(found)) or ["http://deb.debian.org/debian"]


def policy(root: Path, status: int) -> None:
    """Have packages start their services, or not: 0 or 101, what invoke-rc.d asks for."""
    file = root / "usr/sbin/policy-rc.d"
    file.write_text(f"#!/bin/sh\nexit {status}\n")
    file.chmod(0o755)


class Machine:
    """A running Debian; it ends with this object, or with the test run.

    root: its file system, which other machines may have at the same time: what it changes is in memory, and its own.
    booted: with systemd; otherwise nothing runs in it but what is started.
    lasting: what it changes lasts; and it has the host's network instead of one that leads nowhere.
    """

    def __init__(self, root: Path, name: str = "base", *, booted: bool = False, lasting: bool = False) -> None:
        what = ["--boot"] if booted else ["--as-pid2", "bash", "-c", "sleep infinity & wait"]
        how = [] if lasting else ["--volatile=overlay", "--private-network"]
        self._output = (root.parent / f"{name}.log").open("w+b")
        self._container = subprocess.Popen(
            [
                # Its end is the machine's end, which systemd is asked for.
                "setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--quiet", f"--directory={root}",
                f"--machine={root.parent.name}-{name}".replace("_", "-"), "--hostname=debian", "--register=no",
                "--keep-unit", *how, "--console=pipe", *what,
            ],
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, env={"PATH": PATH},
        )  # fmt: skip
        self._init = until(self._child, f"the first process of {name}")
        if booted:
            until(lambda: self.run("systemctl", "is-system-running", status=None).strip() in ("running", "degraded"),
                  "systemd", timeout=60)  # fmt: skip
        else:
            until(lambda: self.run("pgrep", "-x", "sleep", status=None), f"the shell of {name}")

    def _child(self) -> int:
        if self._container.poll() is not None:
            self._output.seek(0)
            raise AssertionError(self._output.read().decode(errors="replace"))
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
        with contextlib.suppress(OSError):
            for pid in children:
                if Path(f"/proc/{pid}/comm").read_text().strip() in FIRST:
                    return int(pid)
        return 0

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)  # and with it everything in its process namespace
        self._container.wait(30)
        self._output.close()
        for hierarchy in Path("/sys/fs/cgroup").glob("*"):
            for name in CGROUPS:
                for group in sorted((hierarchy / name).glob("**/"), reverse=True):
                    with contextlib.suppress(OSError):  # in use by another machine
                        group.rmdir()

    def command(self, *words: object, environment: dict[str, str] | None = None) -> list[str]:
        """The command for the host that runs a command in here."""
        given = [f"{name}={value}" for name, value in {**INSIDE, **(environment or {})}.items()]
        entered = ["nsenter", f"--target={self._init}", "--all", "--", "env", "--ignore-environment", *given]
        return [*entered, *map(str, words)]

    def run(
        self, *words: object, input: str = "", status: int | None = 0, timeout: float = 300, **environment: str
    ) -> str:
        """Run a command in here; what it says, standard error included.

        status: what its exit status must be; None: anything.
        """
        done = subprocess.run(
            self.command(*words, environment=environment), input=input, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        if status is not None and done.returncode != status:
            raise AssertionError(f"{words}: exit status {done.returncode}, expected {status}:\n{done.stdout}")
        return done.stdout

    def status(self, *words: object) -> int:
        """The exit status of a command."""
        return subprocess.run(
            self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode

    def python(self, text: str, *arguments: object) -> Any:
        """Run a program in Python; the JSON that it prints."""
        return json.loads(self.run("python3", "-c", text, *arguments))

    def path(self, inside: str) -> Path:
        """A path in here, as the host sees it; with what is mounted here only."""
        return Path(f"/proc/{self._init}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """Write a file, as an editor does that keeps owner and mode."""
        self.path(inside).parent.mkdir(parents=True, exist_ok=True)
        self.path(inside).write_text(text)

    def put(self, *files: Path) -> list[str]:
        """Copy files into /debs; where they are then."""
        self.path("/debs").mkdir(exist_ok=True)
        return [f"/debs/{Path(shutil.copy(file, self.path('/debs'))).name}" for file in files]

    def install(self, *files: Path) -> str:
        """Install packages by apt, without a network; what it says."""
        keep = "Dpkg::Options::=--force-confold"  # an edited conffile, without asking
        how = ("--yes", "--no-install-recommends", "--allow-downgrades", "-o", keep)
        return self.run("apt-get", "install", *how, *self.put(*files))

    def join(self, other: Machine) -> None:
        """Lay a cable between this machine, 192.0.2.1, and another one, 192.0.2.2."""
        ends = [("name", CABLE, "netns", str(machine._init)) for machine in (self, other)]
        _run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]])
        for number, machine in enumerate((self, other), 1):
            machine.ip("address", "add", f"192.0.2.{number}/24", "dev", CABLE)
            machine.ip("link", "set", CABLE, "up")

    def ip(self, *words: str) -> None:
        """Change its network, by ip(8)."""
        _run(["nsenter", f"--target={self._init}", "--net", "ip", *words])

    def pids(self, title: str) -> list[int]:
        """The processes whose title or command line matches a pattern."""
        return [int(pid) for pid in self.run("pgrep", "--full", title, status=None).split()]

    @contextlib.contextmanager
    def running(self, *words: object) -> Iterator[subprocess.Popen[str]]:
        """Run a command beside the test; it is killed at the end."""
        # What is killed here is what entered the machine; the command is its child.
        command = self.command("setpriv", "--pdeathsig", "KILL", *words)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, env={"PATH": PATH}, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command}: exit status {done.returncode}\n{done.stdout[-5000:]}")
    return done.stdout
