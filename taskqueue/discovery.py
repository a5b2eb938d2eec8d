"""What is installed, plugins and formats, each with a mark that is another one once it was installed anew.

`python -m taskqueue.discovery` prints it.  Only a fresh interpreter sees all of it: lines of new .pth files, eggs, and
nothing of what an old one has cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path

from taskqueue import formats, plugins

__all__ = ["Installed", "discover", "marks_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What is installed.

    plugins: worker type -> `module:attribute`.  formats: content type -> `module:attribute`.
    plugin_marks, format_marks: the same names -> which installation of it this is.
    problems: what is wrong with others, in sentences.
    places: each file and directory whose change may change the rest -> how it was before the rest was read.
    """

    plugins: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    plugin_marks: Mapping[str, str] = field(default_factory=dict)
    format_marks: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_json(self) -> str:
        """All of it, in one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Installed:
        """What `to_json` wrote.  Raises ValueError for anything else."""
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("not what is installed")
        known = {each.name for each in fields(Installed)}  # another version may know more
        values = {name: value for name, value in found.items() if name in known}
        return Installed(**{**values, "problems": tuple(values.get("problems", ()))})

    def installation(self, type: str, read_as: object) -> str:
        """What a worker process of `type` depends on: another one needs another process.

        read_as: what the configuration says about formats.
        """
        everything = [self.plugin_marks.get(type), sorted(self.format_marks.items()), read_as]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]


def discover() -> Installed:
    """What this interpreter sees.  Nothing is imported."""
    # First the places, then what is in them: a change in between is found to be one at the next look.
    directories = dict.fromkeys([*(entry for entry in sys.path if entry), *site.getsitepackages()])
    places = [Path(entry) for entry in directories]
    for directory in list(places):
        if directory.is_dir():
            places += sorted(directory.glob("*.pth"))
    places += [place for distribution in metadata.distributions() for place in _places_of(distribution)]
    marks = marks_of(map(str, places))
    found, problems = plugins.chosen(plugins.GROUP, "type", plugins.refusal)
    third, refused = plugins.chosen(formats.GROUP, "content type", formats.refusal)
    return Installed(
        plugins={name: entry.value for name, entry in found.items()},
        formats={name: entry.value for name, entry in third.items()},
        plugin_marks={name: _mark_of(entry) for name, entry in found.items()},
        format_marks={name: _mark_of(entry) for name, entry in third.items()},
        problems=(*problems, *refused),
        places=marks,
    )


def marks_of(places: Iterable[str]) -> dict[str, str]:
    """How each file or directory is now: another mark once it was changed or replaced; empty: it is not there."""
    return {place: _mark(place) for place in places}


def _mark(place: str) -> str:
    try:
        status = os.stat(place)  # noqa: PTH116  (once a second for each)
    except OSError:
        return ""
    return f"{status.st_mtime_ns:x}.{status.st_ctime_ns:x}.{status.st_ino:x}.{status.st_size:x}"


def _mark_of(entry: metadata.EntryPoint) -> str:
    distribution = entry.dist
    if distribution is None:
        return entry.value
    places = marks_of(map(str, _places_of(distribution)))
    return " ".join([entry.value, distribution.metadata["Name"], distribution.version, *places, *places.values()])


def _places_of(distribution: metadata.Distribution) -> list[Path]:
    """The directory of its metadata and the file with its entry points; of a zipped egg the egg."""
    path = getattr(distribution, "_path", None)  # there is no public name for it
    if path is None:
        return []
    directory = Path(str(path))
    if directory.is_dir():
        return [directory, directory / "entry_points.txt"]
    return [next((each for each in (directory, *directory.parents) if each.exists()), directory)]


if __name__ == "__main__":
    print(discover().to_json())
