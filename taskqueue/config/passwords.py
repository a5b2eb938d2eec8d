"""A password that lies in a file of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["read_password"]

LONGEST = 4096  # bytes


def read_password(file: Path) -> tuple[str, bool]:
    """The password in `file`, without the end of its line, and whether every user of this host may read it.

    Raises ValueError with what is wrong with the file, and nothing of what is in it.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not to wait for the writer of a pipe
        with open(descriptor, "rb") as opened:
            public = bool(os.fstat(descriptor).st_mode & stat.S_IROTH)
            content = opened.read(LONGEST + 2) or b""
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from None
    try:
        password = content.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not password:
        raise ValueError("is empty")
    if len(password) > LONGEST or not password.isprintable():
        raise ValueError(f"is not one line of up to {LONGEST} bytes")
    return password, public
