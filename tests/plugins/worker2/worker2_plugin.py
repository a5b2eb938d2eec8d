"""A worker that says who runs it."""

import os

from taskqueue.worker import BaseWorker


class Worker(BaseWorker):
    """Returns who runs it, and its body."""

    def handle_task(self, body):
        return {
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": sorted(os.getgroups()),
            "pid": os.getpid(),
            "user": os.environ.get("USER"),
            "body": body,
        }
