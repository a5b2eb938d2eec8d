"""A file imports only from lines below its own (ARCHITECTURE.md has the picture)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "taskqueue"

# From the bottom to the top.  A name is a module or a package of taskqueue, with all that is in it; `brokers.*` are
# the backends, each a stranger to the others.  Files of one line may import from each other.
LAYERS = (
    ("errors",),
    (
        "workitem",
        "properties",
        "outcome",
        "dead",
        "lifecycle",
        "record",
        "depending",
        "story",
        "statistics",
        "upkeep",
        "config",
        "plan",
        "retry",
        "clock",
        "status",
    ),
    ("broker", "store", "joining"),
    ("brokers.*",),
    ("worker", "tasks", "plugins", "formats", "discovery", "title"),
    ("client", "process"),
    (
        "loop",
        "intake",
        "dispatcher",
        "workerpool",
        "carrier",
        "daemon",
        "background",
        "service",
        "watch",
        "handover",
        "log",
        "inside",
    ),
    ("cli", "web", "testing", "__main__"),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
SURFACE = "taskqueue"  # taskqueue/__init__.py re-exports: it may import everything, and nothing imports from it


def part_of(module: str) -> str:
    """The part of the project that `module` belongs to: `brokers.amqp.table` is of `brokers.amqp`."""
    names = module.split(".")[1:]
    return ".".join(names[: 2 if names[:1] == ["brokers"] else 1]) or SURFACE


def level_of(part: str) -> int | None:
    """How high `part` stands; None where LAYERS does not know it."""
    return LEVELS.get("brokers.*" if part.startswith("brokers.") else part)


def modules(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted names and paths of all files of `package`."""
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


def imports_of(module: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and name of every module of the project that `path` imports, wherever in it."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if of_project(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if of_project(source):
                # `from taskqueue import clock` imports a module, `from taskqueue.clock import Clock` from one.
                full = (f"{source}.{alias.name}" for alias in node.names)
                yield from ((node.lineno, name if name in known else source) for name in full)


def of_project(module: str) -> bool:
    """Whether `module` is one of ours."""
    return module.partition(".")[0] == "taskqueue"


def violations(package: Path) -> list[str]:
    """Say what is wrong with the imports of the files of `package`, a line each."""
    files = dict(modules(package))
    found = []
    for module, path in files.items():
        part = part_of(module)
        if part == SURFACE or module == "taskqueue.brokers":
            continue
        level = level_of(part)
        if level is None:
            found.append(f"{module}: in no layer; add '{part}' to LAYERS in tests/test_layers.py")
            continue
        for line, imported in imports_of(module, path, set(files)):
            other = part_of(imported)
            below = level_of(other)
            where = f"{module}, line {line}: imports {imported}"
            if other == SURFACE:
                found.append(f"{where}, which is for users; import from the module itself")
            elif below is None and imported in files and imported != "taskqueue.brokers":
                continue  # reported as a file in no layer
            elif below is None:
                found.append(f"{where}, which is no module of a layer")
            elif below > level:
                found.append(f"{where}, which stands above it")
            elif below == level and part.startswith("brokers.") and other != part:
                found.append(f"{where}; backends are strangers to each other")
    return found


def test_a_file_imports_only_from_lines_below_its_own() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        (
            "errors.py",
            "import taskqueue.workitem",
            "taskqueue.errors, line 1: imports taskqueue.workitem, which stands",
        ),
        (
            "errors.py",
            "def late():\n    from taskqueue import clock",
            "taskqueue.errors, line 2: imports taskqueue.clock",
        ),
        ("broker.py", "from .brokers.amqp import table", "imports taskqueue.brokers.amqp.table, which stands above"),
        ("brokers/memory.py", "from .amqp.table import Table", "taskqueue.brokers.amqp.table; backends are strangers"),
        ("brokers/memory.py", "from . import amqp", "taskqueue.brokers.amqp; backends are strangers"),
        ("worker.py", "from taskqueue import connect", "imports taskqueue, which is for users"),
        ("surprise.py", "", "taskqueue.surprise: in no layer; add 'surprise' to LAYERS"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    package = make_package(tmp_path)

    (package / file).write_text(source)

    (found,) = violations(package)
    assert complaint in found


def test_imports_within_a_line_and_downwards_are_right(tmp_path: Path) -> None:
    package = make_package(tmp_path)

    (package / "workitem.py").write_text("from taskqueue import clock\nfrom .errors import FormatError")
    (package / "brokers/amqp/table.py").write_text("from . import message\nfrom taskqueue import broker")
    (package / "__init__.py").write_text("from taskqueue.worker import BaseWorker\nimport json")

    assert violations(package) == []


def make_package(directory: Path) -> Path:
    package = directory / "taskqueue"
    for name in ("errors", "clock", "workitem", "broker", "worker", "__init__", "brokers/__init__", "brokers/memory"):
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    (package / "brokers/amqp").mkdir()
    for name in ("__init__", "table", "message"):
        (package / f"brokers/amqp/{name}.py").touch()
    return package
