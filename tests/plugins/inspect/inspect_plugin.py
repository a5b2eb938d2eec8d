"""A worker that looks at what its process is and may do."""

import contextlib
import ctypes
import errno
import os
import re
from pathlib import Path

from taskqueue.worker import BaseWorker

PR_GET_PDEATHSIG = 2
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17


def own_process():
    """What this process is: its rights, descriptors and environment."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    death_signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(death_signal), 0, 0, 0)
    descriptors = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            descriptors[link.name] = str(link.readlink())
    return {
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": sorted(os.getgroups()),
        "capabilities": {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
        "descriptors": descriptors,
        "environment": dict(os.environ),
        "death_signal": death_signal.value,
        "leads_its_group": os.getpgrp() == os.getpid(),
        "pid": os.getpid(),
        "parent": os.getppid(),
    }


AT_IMPORT = own_process()


def attempt(function, *arguments):
    """What `function` returns, or the name of its exception."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error).__name__


def has(data, halves):
    """Whether `data` has a text; in two halves, so that asking does not put it there."""
    first, second = halves[0].encode(), halves[1].encode()
    return any(data.startswith(second, match.end()) for match in re.finditer(re.escape(first), data))


def memory_has(pid, halves):
    """Whether the memory of a process has a text."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps.read().splitlines():
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if "r" in rights and "[v" not in line:  # [vvar], [vsyscall]
                memory.seek(start)
                if has(memory.read(end - start), halves):
                    return True
    return False


def trace(pid):
    """Look at a process as a debugger does: `traced`, or the error's name."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    if libc.ptrace(PTRACE_SEIZE, int(pid), 0, 0) < 0:
        return errno.errorcode[ctypes.get_errno()]
    libc.ptrace(PTRACE_DETACH, int(pid), 0, 0)
    return "traced"


class Worker(BaseWorker):
    """Returns what it is, and what came of what its body asks it to try.

    Body: {"files": paths to read, "texts": {name: [half, half]} to look for, "pids": processes to look into}.
    """

    def handle_task(self, body):
        others = {}
        for pid in body["pids"]:
            for file in ("environ", "cmdline", "mem", "maps"):
                others[f"{pid}/{file}"] = attempt(self.reads, f"/proc/{pid}/{file}", body["texts"])
        return {
            **AT_IMPORT,
            "root again": [attempt(os.setuid, 0), attempt(os.setgid, 0), attempt(os.setgroups, [0])],
            "files": {file: attempt(lambda path: len(Path(path).read_bytes()), file) for file in body["files"]},
            "own memory": {name: memory_has("self", halves) for name, halves in body["texts"].items()},
            "others": others,
            "traced": {str(pid): trace(pid) for pid in body["pids"]},
        }

    def reads(self, path, texts):
        with open(path, "rb", buffering=0) as file:
            data = file.read(1 << 20)
        return [name for name, halves in texts.items() if has(data, halves)]
