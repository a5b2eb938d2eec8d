"""Hosts of a network of their own, which can vanish: network namespaces, each on a wire to the server's.

network = Network("a", "b")
server = start_postgresql(namespace=network.server)     # tests reach it by its Unix socket, hosts by their wires
network.enter("a")                                      # what goes before a command that runs on host a
network.address("a")                                    # the server, as host a sees it
network.cut("a")                                        # from now on nothing reaches host a, or comes from it
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


def lacking() -> str:
    """Why there can be no hosts here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if all(mount.split()[4] != "/" for mount in mounts):
        return "network namespaces need a / that is a mount point, which that of a mere chroot is not"
    return ""


class Network:
    """A namespace for the server, and one for each of `hosts`.  Needs root."""

    def __init__(self, *hosts: str) -> None:
        prefix = f"taskqueue{os.getpid()}"
        self.server = f"{prefix}-server"
        self._hosts = {host: (f"{prefix}-{host}", f"10.111.{number}") for number, host in enumerate(hosts)}
        self._made: list[str] = []
        try:
            self._make(self.server)
            for host, (namespace, net) in self._hosts.items():
                self._make(namespace)
                _ip(
                    "link",
                    "add",
                    "name",
                    host,
                    "netns",
                    self.server,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    namespace,
                )
                _ip("-n", self.server, "address", "add", f"{net}.1/24", "dev", host)
                _ip("-n", namespace, "address", "add", f"{net}.2/24", "dev", "eth0")
                _ip("-n", namespace, "link", "set", "dev", "eth0", "up")
                _ip("-n", self.server, "link", "set", "dev", host, "up")
        except BaseException:
            self.close()
            raise

    def _make(self, namespace: str) -> None:
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        _ip("-n", namespace, "link", "set", "dev", "lo", "up")

    def enter(self, host: str) -> list[str]:
        """What goes before a command that is to run on `host`."""
        return ["nsenter", f"--net=/run/netns/{self._hosts[host][0]}"]

    def address(self, host: str) -> str:
        """The server's address for `host`."""
        return f"{self._hosts[host][1]}.1"

    def slow_down(self, host: str, bits: str) -> None:
        """Let the server send no more than `bits` a second to `host`, such as `1mbit`."""
        limit = ["rate", bits, "burst", "16kb", "latency", "1s"]
        command = ["tc", "-n", self.server, "qdisc", "add", "dev", host, "root", "tbf", *limit]
        subprocess.run(command, check=True, capture_output=True)

    def cut(self, host: str) -> None:
        """Have everything get lost that `host` and the server say to each other from now on; nobody is told."""
        for namespace, device, address in self._ends(host):
            nobody = ["lladdr", "02:00:00:00:00:01", "nud", "permanent"]
            _ip("-n", namespace, "neighbour", "replace", address, *nobody, "dev", device)

    def join(self, host: str) -> None:
        """Have everything come through again."""
        for namespace, device, address in self._ends(host):
            _ip("-n", namespace, "neighbour", "delete", address, "dev", device)

    def _ends(self, host: str) -> list[tuple[str, str, str]]:
        """Both ends of the wire: namespace, device, and the address at the other end."""
        namespace, net = self._hosts[host]
        return [(self.server, host, f"{net}.2"), (namespace, "eth0", f"{net}.1")]

    def close(self) -> None:
        """Remove it all.  May be called twice."""
        while self._made:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", self._made.pop())


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
