"""A worker that describes files: digest, size, lines, words."""

from __future__ import annotations

import hashlib
from typing import Any

from taskqueue.worker import BaseWorker

CHUNK = 1 << 20


class Worker(BaseWorker):
    """Handles a path, or an object with a `path`, on the worker's host."""

    def handle_task(self, body: Any) -> dict[str, Any]:
        path = body.get("path") if isinstance(body, dict) else body
        if not isinstance(path, str):
            raise TypeError(f"the workitem must be a path or an object with a path, not {body!r:.100}")
        return filestat(path)


def filestat(path: str) -> dict[str, Any]:
    """SHA-256, size in bytes, lines and words of the file `path`, read in chunks, in constant memory.

    Lines are newline bytes, as `wc -l` counts them; words are runs of bytes that are not ASCII white space, as POSIX
    defines them for `wc -w` in the C locale.
    """
    digest = hashlib.sha256()
    size = lines = words = 0
    in_word = False
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            words += len(chunk.split())
            if in_word and not chunk[:1].isspace():
                words -= 1  # the word that the last chunk ended in goes on
            in_word = not chunk[-1:].isspace()
    return {"path": path, "sha256": digest.hexdigest(), "size": size, "lines": lines, "words": words}
