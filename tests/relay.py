"""A TCP relay before a server: can keep its answers back, and cut all connections."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on `port` and passes everything on to a port of this host, until it is told otherwise."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._answering = threading.Event()
        self._answering.set()
        self._open: list[socket.socket] = []
        self._question = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def keep_back(self, question: bytes) -> None:
        """From `question` on no answer comes through, though the server gets everything."""
        self._question = question

    def cut(self) -> None:
        """End all connections, what was kept back is lost; new ones work."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()
        self._question = b""
        self._answering.set()

    def close(self) -> None:
        """End everything."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, self._answering), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, gate: threading.Event | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if gate is not None:
                    gate.wait()
                elif self._question and self._question in data:
                    self._answering.clear()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
