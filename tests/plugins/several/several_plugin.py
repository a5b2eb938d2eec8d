"""Workers that run several workitems at once, or are to be stopped, weighed and replaced."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from taskqueue.errors import SoftTimeLimitExceeded
from taskqueue.worker import BaseWorker

INTERPRETER = ctypes.PyDLL(None)  # whose calls keep the interpreter lock


class Notes(BaseWorker):
    """Notes what it does in the file of the setting `file`: `what ID ATTEMPT PID MONOTONIC`."""

    def setup(self):
        self.note("setup", "-", 0)

    def teardown(self):
        self.note("teardown", "-", 0)

    def note(self, what, id=None, attempt=None):
        id, attempt = (self.workitem.id, self.workitem.attempt) if id is None else (id, attempt)
        with open(self.settings["file"], "a") as file:
            file.write(f"{what} {id} {attempt} {os.getpid()} {time.monotonic():.6f}\n")

    def who(self):
        return {
            "id": self.workitem.id,
            "attempt": self.workitem.attempt,
            "pid": os.getpid(),
            "thread": threading.get_ident(),
            "inputs": [one.id for one in self.workitem.inputs],
        }


class Threads(Notes):
    """Does what its body says: `verb argument`."""

    def handle_task(self, body):
        verb, _, argument = body.partition(" ")
        self.note("start")
        before = self.who()
        getattr(self, verb)(argument)
        assert self.who() == before
        self.note("end")
        return before

    def wait(self, seconds):
        time.sleep(float(seconds))

    def naps(self, seconds):
        """Waits, and is back in Python code often."""
        end = time.monotonic() + float(seconds)
        try:
            while time.monotonic() < end:
                time.sleep(0.01)
        except SoftTimeLimitExceeded:
            self.note("cleaned-up")
            raise

    def heed(self, seconds):
        """Looks often whether somebody wants it no more."""
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            self.check()
            time.sleep(0.01)

    def swallow(self, seconds):
        """Ends in good order at its soft time limit."""
        try:
            self.naps(seconds)
        except SoftTimeLimitExceeded:
            return

    def kill(self, text):
        """Kills its process when the setting `crowd` says how many have been started."""
        if self.workitem.attempt == 1:
            while Path(self.settings["file"]).read_text().count("start ") < int(self.settings["crowd"]):
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def lock(self, seconds):
        """Holds the interpreter lock, at once."""
        INTERPRETER.sleep(int(seconds))


class Loop(Notes):
    """The same in an event loop."""

    async def setup(self):
        await asyncio.sleep(0)
        self.loop = asyncio.get_running_loop()
        Notes.setup(self)

    async def teardown(self):
        assert asyncio.get_running_loop() is self.loop
        Notes.teardown(self)

    async def handle_task(self, body):
        verb, _, argument = body.partition(" ")
        assert asyncio.get_running_loop() is self.loop
        self.note("start")
        before = self.who()
        try:
            await getattr(self, verb)(argument)
        except asyncio.CancelledError:
            self.note("cleaned-up")
            raise
        assert self.who() == before
        self.note("end")
        return before

    async def wait(self, seconds):
        await asyncio.sleep(float(seconds))

    async def heed(self, seconds):
        """Hears of it without looking."""
        await asyncio.sleep(float(seconds))

    async def block(self, seconds):
        time.sleep(float(seconds))

    async def fail(self, text):
        raise ValueError(text)

    async def exit(self, status):
        sys.exit(int(status))


class OlderLoop(BaseWorker):
    """No worker: the older form does not go together with `async def`."""

    async def handle_task(self, channel, method, header, body):
        channel.basic_ack()


class Memory(Notes):
    """`keep N`: has N MiB more for ever.  `grow N`: has N MiB more, and sleeps.  `child N`: a child of it has them."""

    kept = ()

    def handle_task(self, body):
        verb, _, argument = body.partition(" ")
        self.note("start")
        size = int(argument) << 20
        if verb == "keep":
            self.kept = (*self.kept, b"x" * size)
        elif verb == "grow":
            mine = b"x" * size
            time.sleep(60)
            del mine
        elif verb == "child":
            code = f"import time; mine = b'x' * {size}; time.sleep(1)"
            subprocess.run([sys.executable, "-c", code], check=True)
        elif verb == "error":
            raise MemoryError("too little of it")
        return os.getpid()
