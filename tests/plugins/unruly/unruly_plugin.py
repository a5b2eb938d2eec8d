"""Workers that do what well-behaved ones don't."""

import ctypes
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time

from taskqueue.worker import BaseWorker, Reject, Retry


class Unruly(BaseWorker):
    """Does what its body says: `verb argument`.  The setting `file` names a file to note things in."""

    def handle_task(self, body):
        verb, _, argument = body.partition(" ")
        return getattr(self, verb)(argument)

    def note(self, text):
        with open(self.settings["file"], "a") as file:
            file.write(f"{text}\n")

    def echo(self, text):
        return text

    def sum(self, number):
        """Of the number, and all that it depends on."""
        time.sleep(0.01)
        return int(number) + sum(json.loads(one.payload.body) for one in self.workitem.inputs)

    def ends(self, text):
        """How those have ended that it depends on."""
        return [
            [one.id, one.type, one.state, one.payload and one.payload.body.decode(), one.error]
            for one in self.workitem.inputs
        ]

    def attempt(self, text):
        return self.workitem.attempt

    def fail(self, text):
        raise ValueError(text)

    def fail_until(self, attempt):
        self.note(f"{self.workitem.id} {self.workitem.attempt} {time.monotonic()}")
        if self.workitem.attempt < int(attempt):
            raise ValueError("not yet")
        return self.workitem.attempt

    def retry(self, seconds):
        if self.workitem.attempt == 1:
            raise Retry(after=float(seconds))
        return self.workitem.attempt

    def retry_wrongly(self, text):
        error = Retry()
        error.after = text
        raise error

    def reject(self, reason):
        raise Reject(reason)

    def reject_oddly(self, number):
        raise Reject(int(number))

    def exit(self, status):
        sys.exit(int(status))

    def say(self, text):
        print(text)
        print(text, file=sys.stderr)
        return "said"

    def log(self, text):
        logging.getLogger("unruly").warning("%s", text)
        logging.getLogger("unruly").info("%d", "no number")  # wrong, and a program goes on after it
        return "logged"

    def tell(self, seconds):
        logging.getLogger("unruly").warning("one of two")
        self.progress(1, 4, "a quarter")
        time.sleep(float(seconds))
        logging.getLogger("unruly").warning("two of two")
        self.progress(4, 4, "all")
        return "told"

    def heed(self, seconds):
        """Looks often whether somebody wants it no more."""
        self.note(f"start {self.workitem.id} {os.getpid()}")
        for _ in range(int(float(seconds) * 100)):
            self.check()
            time.sleep(0.01)

    def heed_progress(self, seconds):
        self.note(f"start {self.workitem.id} {os.getpid()}")
        for n in range(int(float(seconds) * 100)):
            self.progress(n)
            time.sleep(0.01)

    def heed_well(self, seconds):
        """Ends in good order."""
        self.note(f"start {self.workitem.id} {os.getpid()}")
        end = time.monotonic() + float(seconds)
        while not self.cancelled and time.monotonic() < end:
            time.sleep(0.01)
        return "as far as it came"

    def doze(self, seconds):
        self.note(f"start {self.workitem.id} {os.getpid()}")
        time.sleep(float(seconds))

    def resist(self, seconds):
        """Does not let itself be terminated."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.doze(seconds)

    def odd_result(self, kind):
        return {"object": object(), "set": {1}, "nan": float("nan"), "key": {(1, 2): 3}}[kind]

    def long_result(self, size):
        return "x" * int(size)

    def long_error(self, size):
        raise ValueError("x" * int(size))

    def fork_and_return(self, text):
        """The child comes back into code that is not its own."""
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return os.getpid()
        return "child"

    def fork_and_fail(self, text):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        raise ValueError("in the child")

    def threads(self, text):
        """One that goes on logging, and never ends."""

        def work():
            while True:
                logging.getLogger("unruly.thread").info("tick")
                time.sleep(0.05)

        threading.Thread(target=work, daemon=False).start()
        return threading.active_count()

    def signals(self, text):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        return "ignored"

    def close_all(self, seconds):
        """As code does that wants to become a daemon."""
        os.closerange(3, 1000)
        time.sleep(float(seconds))

    def garbage(self, seed):
        """Writes what is no frame to its own socket."""
        os.write(int(sys.argv[1]), b"\xff" + random.Random(int(seed)).randbytes(5000))
        time.sleep(600)

    def lie(self, text):
        """Says in good form what makes no sense."""
        from taskqueue.process.protocol import Kind, pack

        frame = {
            "number": pack(Kind.ENDED, [4711, 0.1, "done", "text/plain", []]),
            "kind": pack(Kind.KILL, {"pid": 1}),
            "answer": pack(Kind.ENDED, [1, 0.1, "wonderful"]),
            "time": pack(Kind.ENDED, [1, float("nan"), "done", "text/plain", []]),
            "priority": pack(Kind.ENDED, [1, 0.1, "done", None, [["results", {"priority": 1000}, ""]]]),
            "queue": pack(Kind.ENDED, [1, 0.1, "done", None, [["x" * 300, {}, ""]]]),
        }[text]
        os.write(int(sys.argv[1]), frame)
        time.sleep(600)

    def segfault(self, text):
        ctypes.string_at(0)

    def grandchild(self, text):
        """A child that outlives the time limit, and one in a group of its own."""
        child = subprocess.Popen(["sleep", "600"])
        self.note(f"{os.getpid()} {child.pid}")
        time.sleep(600)

    def leave_group(self, text):
        self.note(f"{os.getpid()}")
        subprocess.Popen(["sleep", "600"])
        os.setpgid(0, os.getpgid(os.getppid()))
        time.sleep(600)


class Long(BaseWorker):
    """Runs for a long time in the way that its body says, `way seconds`; writes `start` lines to the setting `file`."""

    def handle_task(self, body):
        way, _, text = body.partition(" ")
        seconds = float(text)
        with open(self.settings["file"], "a") as file:
            file.write(f"start {self.workitem.id} {self.workitem.attempt} {os.getpid()}\n")
        began = time.monotonic()
        getattr(self, way)(seconds)
        return {"way": way, "seconds": time.monotonic() - began, "attempt": self.workitem.attempt}

    def sleep(self, seconds):
        time.sleep(seconds)

    def compute(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(n * n for n in range(1000))

    def lock(self, seconds):
        """One call that holds the interpreter lock from its beginning to its end."""
        amount = 1_000_000
        while True:
            began = time.thread_time()  # others may have the processor meanwhile
            sum(range(amount))
            if (took := time.thread_time() - began) > 0.2:
                break
            amount *= 2
        sum(range(int(amount * seconds / took)))


class SlowSetup(BaseWorker):
    """Takes `seconds` (a setting) to set up."""

    def setup(self):
        time.sleep(float(self.settings["seconds"]))

    def handle_task(self, body):
        return body
