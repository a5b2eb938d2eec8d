"""Formats of third parties: found in the metadata of installed packages, loaded, and kept from doing harm."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from taskqueue.errors import FormatError
from taskqueue.formats.builtin import BUILTIN
from taskqueue.formats.chartext import line
from taskqueue.formats.contract import Extracted, Format, Formats
from taskqueue.plugins import entry_points, load
from taskqueue.workitem import Workitem

__all__ = ["GROUP", "Installed", "discover", "known", "refusal"]

log = logging.getLogger(__name__)

GROUP = "workitems"

_CONTENT_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")


def discover() -> tuple[dict[str, str], tuple[str, ...]]:
    """Content type to `module:attribute`, for every installed format; and what is wrong with others, in sentences.

    Nothing is imported.
    """
    return entry_points(GROUP, "content type", refusal)


def refusal(name: str) -> str:
    """Why no format of a third party can have this name; empty: one can."""
    if _CONTENT_TYPE.fullmatch(name) is None:
        return "the name is no content type in lower case, such as application/x-own"
    return "this format is built in" if name in BUILTIN else ""


def known(installed: Mapping[str, str], *, default: str, read_as: Mapping[str, str]) -> Formats:
    """All formats: those that are built in, and `installed` ones (as of `discover`), imported when they are needed."""
    more = {content_type: Installed(content_type, entry_point) for content_type, entry_point in installed.items()}
    return Formats(known={**BUILTIN, **more}, default=default, read_as=read_as)


class Installed:
    """A format of a third party, which is imported when it is first needed.

    Whatever goes wrong in it is a FormatError; the first time it is reported with its traceback, too.
    """

    def __init__(self, content_type: str, entry_point: str) -> None:
        self._content_type = content_type
        self._entry_point = entry_point
        self._format: Format | None = None
        self._broken = ""
        self._reported = False

    def load(self) -> None:
        """Import it now, so that what is wrong with it is said now."""
        if self._format is None and not self._broken:
            try:
                loaded = load(self._entry_point)()
                for verb in ("extract", "value"):
                    if not callable(getattr(loaded, verb, None)):
                        raise TypeError(f"a format needs a method {verb}")
                self._format = loaded
            except BaseException as error:  # SystemExit, too
                self._broken = self._failed("does not load", error)

    def extract(self, workitem: Workitem) -> Extracted:
        found = self._call("extract", workitem)
        if not isinstance(found, Extracted):
            raise self._nonsense(f"extract returned {type(found).__name__}, expected Extracted")
        for name, kind in (("type", str), ("body", bytes), ("content_type", str), ("reference", str)):
            if not isinstance(getattr(found, name), kind):
                raise self._nonsense(f"extract returned an Extracted whose {name} is no {kind.__name__}")
        return found

    def value(self, body: bytes, content_type: str) -> object:
        return self._call("value", body, content_type)

    def _call(self, verb: str, *arguments: Any) -> Any:
        self.load()
        if self._broken:
            raise FormatError(self._broken)
        try:
            return getattr(self._format, verb)(*arguments)
        except FormatError as error:
            raise FormatError(_words(error).partition(": ")[2]) from None
        except BaseException as error:  # SystemExit, too: nothing that comes in stops a daemon
            raise FormatError(self._failed("failed", error)) from None

    def _nonsense(self, what: str) -> FormatError:
        return FormatError(self._failed("failed", TypeError(what)))

    def _failed(self, how: str, error: BaseException) -> str:
        """What is said of it; to the log only once, as any producer can make it happen again."""
        if not self._reported:
            self._reported = True
            text = "".join(traceback.format_exception(error))
            log.error(
                "the format %s (%s) %s; messages that need it become dead letters\n%s",
                self._content_type, self._entry_point, how, text.rstrip(),
            )  # fmt: skip
        return f"the format {self._content_type} {how}: {_words(error)}"


def _words(error: BaseException) -> str:
    return line("".join(traceback.format_exception_only(error))).strip()  # also where its own str() fails
