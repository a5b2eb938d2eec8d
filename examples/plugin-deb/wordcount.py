"""A worker that counts the words of a text."""

from __future__ import annotations

from collections import Counter

from taskqueue.worker import BaseWorker


class Worker(BaseWorker):
    """Handles a text; the setting `most` says how many words the result has."""

    def setup(self) -> None:
        self.most = int(self.settings.get("most", "10"))

    def handle_task(self, body: str) -> dict[str, int]:
        return dict(Counter(body.lower().split()).most_common(self.most))
