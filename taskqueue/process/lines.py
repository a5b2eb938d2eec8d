"""The log of each workitem that runs, as far as it is kept."""

from __future__ import annotations

__all__ = ["LONGEST_LINE", "Lines"]

MOST_LINES = 1000  # of the log of one attempt; the first and the last half of more are kept
LONGEST_LINE = 2000
"""Characters of a line."""


class Lines:
    """By the numbers of hand-overs."""

    def __init__(self) -> None:
        self._lines: dict[int, list[str]] = {}

    def add(self, number: int, line: str) -> None:
        """One more line."""
        lines = self._lines.setdefault(number, [])
        lines.append(line[:LONGEST_LINE])
        if len(lines) > MOST_LINES:
            del lines[MOST_LINES // 2]

    def so_far(self, number: int) -> tuple[str, ...]:
        """All that is kept."""
        return tuple(self._lines.get(number, ()))

    def take(self, number: int) -> tuple[str, ...]:
        """The same; it is forgotten here."""
        return tuple(self._lines.pop(number, ()))
