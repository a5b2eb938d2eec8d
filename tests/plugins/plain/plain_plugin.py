"""Several small workers in one distribution."""

import os
import signal
import time

from taskqueue.worker import BaseWorker


class Echo(BaseWorker):
    """Returns its body."""

    def handle_task(self, body):
        return body


class Nothing(BaseWorker):
    """Does nothing."""

    def handle_task(self, body):
        pass


class Sleep(BaseWorker):
    """Sleeps as many seconds as its body says, and returns it."""

    def handle_task(self, body):
        time.sleep(float(body))
        return body


class WhoAmI(BaseWorker):
    """Returns who runs it."""

    def handle_task(self, body):
        return {
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": sorted(os.getgroups()),
            "pid": os.getpid(),
            "user": os.environ.get("USER"),
        }


class Crash(BaseWorker):
    """Kills its process by the signal that its body names, such as SIGSEGV."""

    def handle_task(self, body):
        os.kill(os.getpid(), signal.Signals[body])
        time.sleep(60)  # a signal that is blocked or ignored must show as a time-out, not as success


class Fail(BaseWorker):
    """Raises its body."""

    def handle_task(self, body):
        raise ValueError(body)


class Record(BaseWorker):
    """Writes what it does to the file of the setting `file`, and returns its body.

    Lines are `start|end ID ATTEMPT MONOTONIC PID`.  Between the two it sleeps `seconds` (a setting, 0.01).
    """

    def setup(self):
        # O_APPEND and one write a line: lines of many processes stay whole, and none is lost by a SIGKILL.
        self.file = os.open(self.settings["file"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def teardown(self):
        os.close(self.file)

    def handle_task(self, body):
        self.write("start")
        time.sleep(float(self.settings.get("seconds", "0.01")))
        self.write("end")
        return body

    def write(self, event):
        item = self.workitem
        os.write(self.file, f"{event} {item.id} {item.attempt} {time.monotonic():.6f} {os.getpid()}\n".encode())
