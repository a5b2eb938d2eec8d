"""From a file to a `Config`, or to everything that is wrong with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from taskqueue.config import parsers
from taskqueue.config.groups import read_options, resolve
from taskqueue.config.ini import Report, Section, merge, read
from taskqueue.config.loggers import check_logging
from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS, Option, defaults, nearest
from taskqueue.config.passwords import read_password
from taskqueue.config.secrets import is_secret, mask_url
from taskqueue.config.values import DEFAULT_PATH, DEFAULT_URL, EMBEDDED_FILE, Config, embedded_directory
from taskqueue.errors import ConfigError

__all__ = ["File", "find", "load", "parse"]

LARGEST = 1 << 20  # bytes; a configuration is not that long: the path names something else
NOT_YET = ("store", "schedule", "web")


def load(
    path: Path | None, plugins: Mapping[str, str], *, formats: Collection[str] | None = None, url: str = ""
) -> Config:
    """Read the configuration at `path` (None: at its usual place, or the embedded broker where no file is there).

    The files conf.d/*.ini beside it are read after it, in the order of their names: of an option that is in several,
    the last one counts.

    plugins: worker type -> entry point, of what is installed here.
    formats: the content types that a format is installed here for; None: this program needs none.
    url: goes before what the file says.

    Raises ConfigError with every problem of the file.
    """
    file = find(path)
    named = url or ("" if file.there else _embedded_url())
    return _meaning(file, plugins, formats=formats, url=named)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A configuration file as it is.

    public: whether every user of this host may read it.
    there: False where none was named and none is at its usual place.
    more: those of its conf.d, in the order in which they are read.
    """

    path: Path
    text: str = field(default="", repr=False)
    public: bool = False
    there: bool = True
    more: tuple[File, ...] = ()

    def sections(self, report: Report | None = None) -> dict[str, Section]:
        """What is in all of them, whether it means anything or not; what is wrong goes to `report`."""
        report = report or Report(self.path)
        found = [read(file.text, report, number=n, path=file.path) for n, file in enumerate((self, *self.more))]
        aliases = {option.alias: name for name, option in AMQP.items() if option.alias}
        return merge(found, {"amqp": aliases})


def find(path: Path | None) -> File:
    """Read the file at `path` (None: at its usual place, where it may be missing), and those of its conf.d.

    Raises ConfigError.
    """
    place = path or DEFAULT_PATH
    more = tuple(_read(each) for each in _more(place.parent / "conf.d"))
    if path is None and not _is_there(place):
        return File(path=place, there=bool(more), more=more)
    return replace(_read(place), more=more)


def _is_there(place: Path) -> bool:
    try:
        place.stat()
    except FileNotFoundError:
        return False
    except OSError:  # which `_read` will say
        return True
    return True


def _more(directory: Path) -> list[Path]:
    try:
        return sorted(each for each in directory.iterdir() if each.suffix == ".ini" and not each.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: can't be read: {error.strerror}") from None


def _read(place: Path) -> File:
    try:
        with open(place, "rb") as file:
            public = bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{place}: there is no such file; an empty one is a complete configuration: every installed plugin, "
            f"{DEFAULT_URL}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{place}: can't be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise ConfigError(f"{place}: is no configuration: it is longer than {LARGEST} bytes")
    return File(path=place, text=_decode(content, place), public=public)


def parse(
    text: str,
    path: Path,
    plugins: Mapping[str, str],
    *,
    formats: Collection[str] | None = None,
    url: str = "",
    public: bool = False,
) -> Config:
    """What `text`, the content of `path`, means.  It reads nothing but the password_file that it may name.

    public: whether every user of this host may read it.  Other arguments and errors as those of `load`.
    """
    return _meaning(File(path=path, text=text, public=public), plugins, formats=formats, url=url)


def _meaning(file: File, plugins: Mapping[str, str], *, formats: Collection[str] | None, url: str) -> Config:
    report = Report(file.path)
    sections = file.sections(report)
    if url:
        _check_url(url, report)
    daemon = _daemon(sections.get("taskqueue", Section("taskqueue")), TASKQUEUE, report)
    amqp = _daemon(sections.get("amqp", Section("amqp")), AMQP, report)
    if formats is not None:
        _check_formats(sections, daemon, formats, report)
    for name in NOT_YET:
        if name in sections:
            report.warning(sections[name].place, f"[{name}] is reserved for a later release and not used yet")
    groups = resolve(sections, plugins, report)
    logging = check_logging(sections, report)
    _warn_public(sections, {each.path for each in (file, *file.more) if each.public}, report)
    named = daemon.pop("url", "")
    if named and amqp.keys() - {"heartbeat"}:
        report.warning(sections["amqp"].place, "[amqp]: only heartbeat is used, as url of [taskqueue] names the broker")
    _take_password(amqp, sections, report, needed=not (url or named))
    heartbeat = amqp.pop("heartbeat", defaults(AMQP)["heartbeat"])
    config = {**daemon, "heartbeat": heartbeat, "groups": groups, "logging": logging}
    if report.problems:
        raise ConfigError(*report.problems)
    return Config(
        path=file.path,
        more=tuple(each.path for each in file.more),
        url=url or named or _amqp_url(amqp),
        warnings=report.warnings,
        places={(name, e.name): str(e.place) for name, each in sections.items() for e in each.entries.values()},
        **config,
    )


def _check_formats(
    sections: Mapping[str, Section], daemon: Mapping[str, Any], formats: Collection[str], report: Report
) -> None:
    default = daemon.get("default_workitem_type", "")
    named = {
        "default_workitem_type": (default,) if default else (),
        "workitem_type_map": tuple(meant for _, meant in daemon.get("workitem_type_map", ())),
    }
    for option, content_types in named.items():
        for content_type in dict.fromkeys(content_types):
            if content_type not in formats:
                section, near = sections["taskqueue"], nearest(content_type, formats)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(formats))}"
                wrong = f"no format for {content_type} is installed here; {hint}"
                report.wrong(section, section.entries[option], wrong)


def _embedded_url() -> str:
    """The embedded broker's URL; its directory is made where it does not exist."""
    directory = embedded_directory(os.environ, root=os.geteuid() == 0)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: the embedded broker, which is used where there is no {DEFAULT_PATH}, needs this directory, "
            f"and it can't be made: {error.strerror}"
        ) from None
    return f"sqlite:///{quote(str(directory / EMBEDDED_FILE))}"


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ConfigError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} in column {column} is not UTF-8: "
            f"expected a file in UTF-8"
        ) from None


def _check_url(url: str, report: Report) -> None:
    try:
        parsers.url(url)
    except ValueError as error:
        report.problem(None, f"not used with the URL {mask_url(url)!r}: {error}")


def _daemon(section: Section, table: Mapping[str, Option], report: Report) -> dict[str, Any]:
    """The options of a section in which every option must be known."""

    def unknown(name: str) -> None:
        meant = nearest(name, [*table, *(option.alias for option in table.values() if option.alias)])
        hint = f"did you mean {meant}?" if meant else f"expected one of {', '.join(table)}"
        if not meant and name in WORKERS:
            hint = "it belongs to the section of a worker type, or to [DEFAULT]"
        shown = name.split()[0]  # the rest may be a password that lacks its equals sign
        report.problem(section.entries[name].place, f"[{section.name}] {shown}: there is no such option; {hint}")

    return read_options(section, table, report, unknown)


def _amqp_url(given: Mapping[str, Any]) -> str:
    """The URL that the options of [amqp] stand for."""
    if not given:
        return DEFAULT_URL
    options: dict[str, Any] = {**defaults(AMQP), **given}
    user, password, vhost = (quote(options[name], safe="") for name in ("user", "password", "vhost"))
    host = options["host"]
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    scheme, port = ("amqps", 5671) if options["tls"] else ("amqp", 5672)
    return f"{scheme}://{user}:{password}@{host}:{options['port'] or port}/{vhost}"


def _take_password(amqp: dict[str, Any], sections: Mapping[str, Section], report: Report, *, needed: bool) -> None:
    """Put the password that lies in the password_file into `amqp`, where the broker is reached with it."""
    name = amqp.pop("password_file", "")
    if not name:
        return
    place = sections["amqp"].entries["password_file"].place
    if "password" in amqp:
        report.problem(place, "[amqp] password_file: expected either password or password_file, not both")
    elif needed:
        file = place.path.parent / name
        try:
            amqp["password"], public = read_password(file)
        except ValueError as error:
            wrong = f"[amqp] password_file: {file} {error}: expected a file with the password in one line"
            report.problem(place, wrong)
            return
        if public:
            wrong = f"every user of this host may read {file}: expected mode 0640 or less"
            report.warning(place, f"[amqp] password_file: {wrong}")


def _warn_public(sections: Mapping[str, Section], public: set[Path], report: Report) -> None:
    """Say once of each file that has a secret and that everybody may read."""
    for section in sections.values():
        for entry in section.entries.values():
            if entry.place.path not in public or (section.name == "amqp" and entry.name == "password_file"):  # a path
                continue
            if (entry.value and is_secret(entry.name)) or mask_url(entry.value) != entry.value:
                report.warning(
                    entry.place,
                    f"[{section.name}] {entry.name} is a secret, and every user of this host may read the file: "
                    f"expected mode 0640 or less",
                )
                public = public - {entry.place.path}
