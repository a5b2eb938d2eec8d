"""Where a worker process, which is a fresh interpreter, finds the worker that a program has in its hands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from taskqueue.errors import PluginError
from taskqueue.plugins import load

__all__ = ["entry_point", "factory", "is_being_imported_again", "surroundings"]

MAIN, MAIN_AGAIN = "__main__", "__mp_main__"  # the main file, and what it is called when it is imported once more


def factory(worker: Any) -> Callable[[], Any]:
    """What makes the worker, in this process.  Raises PluginError, or whatever its import raises."""
    found = load(worker) if isinstance(worker, str) else getattr(worker, "factory", worker)
    if not callable(found):
        raise PluginError(
            f"{worker!r} is no worker: expected something with a `factory`, such as a worker class, a callable without "
            "parameters that makes one, or 'module:attribute'"
        )
    return found


def entry_point(worker: Any) -> str:
    """`module:attribute` of what makes the worker, as a worker process loads it.  Raises PluginError."""
    if isinstance(worker, str):
        found = worker
    elif factory(worker) is worker and hasattr(worker, "__self__"):  # a method
        found = f"{_place(worker.__self__)}.{worker.__name__}"
    else:
        found = _place(worker) if factory(worker) is worker else f"{_place(worker)}.factory"
    module, _, attribute = found.partition(":")
    if module not in (MAIN, MAIN_AGAIN):
        return found
    if not _main_file():
        raise PluginError(
            f"{attribute} is in the program's main module, which worker processes can't import: it is no file, or that "
            "of a package; put it into a module of its own, or run it in threads"
        )
    return f"{MAIN_AGAIN}:{attribute}"


def _place(thing: Any) -> str:
    """`module:attribute`, by which exactly this object is found."""
    own = getattr(thing, "__qualname__", "")  # of a class or function
    module = getattr(thing, "__module__" if own else "module", None) or type(thing).__module__
    namespace = sys.modules.get(module, ModuleType(module))
    for name in (own, *(name for name, value in list(vars(namespace).items()) if value is thing)):
        found: Any = namespace
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is thing:
            return f"{module}:{name}"
    raise PluginError(
        f"{thing!r} can't be found by worker processes: it is no attribute of the module {module}; "
        "give it a name there, or pass 'module:attribute'"
    )


def _main_file() -> Mapping[str, str]:
    """How the program's main module is imported again; empty: it can't be."""
    main = sys.modules[MAIN]
    if main.__spec__ is not None:  # python -m
        name = main.__spec__.name
        return {} if name.rpartition(".")[2] == MAIN else {"init_main_from_name": name}
    file = getattr(main, "__file__", None)
    return {"init_main_from_path": str(Path(file).absolute())} if file and Path(file).is_file() else {}


def surroundings(entry_point: str) -> dict[str, Any]:
    """What a worker process needs to see the same modules, for `multiprocessing.spawn.prepare`."""
    main = _main_file() if entry_point.startswith(f"{MAIN_AGAIN}:") else {}
    path = [str(Path.cwd()) if entry == "" else entry for entry in sys.path]
    return {"sys_path": path, "sys_argv": sys.argv, **main}


def is_being_imported_again() -> bool:
    """Whether this is a process that some other one started, which is importing its main file right now."""
    return sys.modules.get(MAIN_AGAIN, sys.modules[MAIN]) is not sys.modules[MAIN]
