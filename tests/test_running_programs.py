"""Whole programs with workers inside: where their main file is, and how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from asking import KINDS, Asking, running
from system import PATIENCE, alive, until

import taskqueue
from taskqueue.lifecycle import State

TESTS = Path(__file__).resolve().parent

PROGRAM = """
import os, signal, sys
import taskqueue
from taskqueue.worker import BaseWorker
import beside

class Worker(BaseWorker):
    def handle_task(self, body):
        return [os.getpid(), beside.NAME, __name__, body]

{guard}
    queue = taskqueue.connect({url!r})
    with taskqueue.running(queue, Worker, {kind}=2):
        ids = queue.send_many(queue.workitem("default", n) for n in range(3))
        found = [queue.result(id, timeout=60) for id in ids]
    print({{pid == os.getpid() for pid, *_ in found}}, [rest for _, *rest in found])
"""
GUARD = 'if __name__ == "__main__":'


def program(directory: Path, **parts: str) -> Path:
    """A main file, and a module beside it."""
    (directory / "beside.py").write_text("NAME = 'beside'\n")
    file = directory / "main.py"
    text = PROGRAM.format(**{"guard": GUARD, "kind": "processes", "url": "memory://", **parts})
    file.write_text(text)
    return file


def run(*arguments: str, directory: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=directory, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


SUBMITTING = """
import taskqueue

space = taskqueue.TaskSpace("shop")
queue = taskqueue.connect({url!r})

@space.task
def first(value):
    return queue.submit(second, value)

@space.task
def second(value):
    return value + 1

if __name__ == "__main__":
    with taskqueue.running(queue, space, {kind}=2):
        try:
            print(queue.submit(first, 1).result({patience}))
        except taskqueue.TaskFailure as failure:
            print(failure.error)
"""


class TestTasksThatSubmitTasks:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("where", ["memory", "sqlite"])
    def test_they_do_or_say_why_not(self, tmp_path: Path, kind: str, where: str) -> None:
        url = "memory://" if where == "memory" else f"sqlite:///{tmp_path}/queue.db"
        (tmp_path / "main.py").write_text(SUBMITTING.format(url=url, kind=kind, patience=PATIENCE))

        done = run("main.py", directory=tmp_path)

        expected = "memory:// is in the program" if (where, kind) == ("memory", "processes") else "2\n"
        assert expected in done.stdout, done.stderr


class TestAMainFile:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("how", ["path", "module"])
    def test_a_worker_in_it_is_found(self, tmp_path: Path, kind: str, how: str) -> None:
        package = tmp_path / "package"
        package.mkdir()
        if how == "path":
            program(package, kind=kind, url=f"sqlite:///{tmp_path}/queue.db")
            done = run("package/main.py", directory=tmp_path)
        else:
            file = program(tmp_path, kind=kind, url=f"sqlite:///{tmp_path}/queue.db")
            file.rename(package / "main.py")
            done = run("-m", "package.main", directory=tmp_path)

        name = "__main__" if kind == "threads" else "__mp_main__"
        expected = f"{{{kind == 'threads'}}} {[['beside', name, n] for n in range(3)]}\n"
        assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)

    def test_one_that_does_its_work_unguarded_is_told_so(self, tmp_path: Path) -> None:
        done = run(str(program(tmp_path, guard="if True:")), directory=tmp_path)

        assert done.returncode == 1
        assert "plugin of group default does not load: PluginError: a worker process imports" in done.stderr
        assert 'put this below `if __name__ == "__main__":`' in done.stderr

    @pytest.mark.parametrize("how", ["-c", "input", "package"])
    def test_one_that_cannot_be_imported_is_told_what_helps(self, tmp_path: Path, how: str) -> None:
        file = program(tmp_path)
        match how:
            case "-c":
                done = run("-c", file.read_text(), directory=tmp_path)
            case "input":
                done = run("-", directory=tmp_path, text=file.read_text())
            case _:
                (tmp_path / "package").mkdir()
                file.rename(tmp_path / "package" / "__main__.py")
                done = run("-m", "package", directory=tmp_path)

        assert done.returncode == 1
        assert (
            "PluginError: Worker.factory is in the program's main module, which worker processes can't" in done.stderr
        )
        assert "put it into a module of its own, or run it in threads" in done.stderr

    def test_a_program_that_does_not_want_to_hear_of_its_children_does_no_harm(self, tmp_path: Path) -> None:
        file = program(tmp_path)
        file.write_text(f"import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n{file.read_text()}")
        done = run(str(file), directory=tmp_path)

        assert (done.stderr, done.returncode) == ("", 0)


HELD = """
import importlib, os, sys, time
import handlers, taskqueue
from taskqueue.inside.running import Running

if sabotage := os.environ.get("TASKQUEUE_SABOTAGE"):
    importlib.import_module(f"sabotage.{{sabotage}}")

stop = Running._stop
Running._stop = lambda self, hard: (stop(self, hard), print("leaving", flush=True))

with taskqueue.running(queue := taskqueue.connect({url!r}), handlers.Worker, {kind}=2, stop_timeout=600):
    queue.send("default", ["hold", {directory!r}], id="held")
    print("begun", flush=True)
    {then}
"""


class Held:
    """A program that holds a workitem in the block, until a file `go` is there."""

    def __init__(self, directory: Path, kind: str, then: str) -> None:
        self.directory = directory
        self.url = f"sqlite:///{directory}/queue.db"
        code = HELD.format(url=self.url, kind=kind, directory=str(directory), then=then)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n", self.process.communicate()[1]
        until((directory / "started.1").exists)
        until(lambda: (directory / "started.1").read_text())

    @property
    def worker(self) -> int:
        return int((self.directory / "started.1").read_text())

    def state(self) -> State:
        with taskqueue.connect(self.url) as queue:
            return queue.status("held")


class TestHowAProgramEnds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_keyboard_interrupt_finishes_what_runs(self, tmp_path: Path, kind: str) -> None:
        held = Held(tmp_path, kind, "time.sleep(60)")
        held.process.send_signal(signal.SIGINT)
        threading.Timer(0.2, (tmp_path / "go").touch).start()  # while it is being left
        _, said = held.process.communicate(timeout=PATIENCE)

        assert said.endswith("KeyboardInterrupt\n")
        assert (held.state(), (tmp_path / "finished").exists()) == (State.SUCCEEDED, True)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_second_one_waits_for_nothing_and_the_workitem_goes_back(self, tmp_path: Path, kind: str) -> None:
        held = Held(tmp_path, kind, "time.sleep(600)")
        assert held.process.stdout is not None
        held.process.send_signal(signal.SIGINT)
        assert held.process.stdout.readline() == "leaving\n"
        held.process.send_signal(signal.SIGINT)
        _, said = held.process.communicate(timeout=PATIENCE)

        assert said.endswith("KeyboardInterrupt\n")
        assert held.state() == State.WAITING
        until(lambda: not alive(held.worker))

    def test_sigkill_of_the_program_leaves_no_process_and_loses_nothing(self, tmp_path: Path) -> None:
        held = Held(tmp_path, "processes", "time.sleep(60)")
        assert alive(held.worker) and held.worker != held.process.pid
        held.process.kill()
        held.process.communicate()
        until(lambda: not alive(held.worker))

        asking = Asking(held.url)
        (tmp_path / "go").touch()
        with running(asking, kind="threads"):
            until(lambda: asking.queue.status("held") == State.SUCCEEDED)
        asking.close()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("then", ["os._exit(0)", "os.abort()"])
    def test_whatever_ends_it_no_process_is_left(self, tmp_path: Path, kind: str, then: str) -> None:
        held = Held(tmp_path, kind, f"time.sleep(0.3); {then}")
        held.process.communicate(timeout=PATIENCE)
        until(lambda: not alive(held.worker))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_block_in_a_daemon_thread_keeps_no_program_from_its_end(self, tmp_path: Path, kind: str) -> None:
        code = (
            "import threading, time, handlers, taskqueue\n"
            "begun = threading.Event()\n"
            "def block():\n"
            f"    with taskqueue.running(taskqueue.connect('memory://'), handlers.Worker, {kind}=2):\n"
            "        begun.set(); time.sleep(600)\n"
            "threading.Thread(target=block, daemon=True).start(); begun.wait()\n"
        )
        done = run("-c", code, directory=TESTS)

        assert (done.returncode, done.stderr) == (0, "")
