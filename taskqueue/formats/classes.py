"""Which classes a payload may name, and under which name: pure, and nothing is imported for it."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from types import MappingProxyType, SimpleNamespace
from typing import Any

from taskqueue import errors

__all__ = [
    "EXCEPTIONS",
    "ForeignError",
    "builtin_of",
    "class_named",
    "classes_of",
    "fields_of",
    "hints_of",
    "is_named_tuple",
    "name_of",
]


class ForeignError(Exception):
    """An exception that came as a value, of a class that its reader does not name.

    class_name: `module.qualname` of its class.
    message: what `str()` made of it.
    `args` are its own.  Sent on, it is again of its class for whoever names that.
    """

    __slots__ = ("class_name", "message")  # so that its __dict__ has only the attributes that came with it

    def __init__(self, class_name: str, message: str, args: Iterable[object] = ()) -> None:
        self.class_name = class_name
        self.message = message
        super().__init__(*args)

    def __reduce__(self) -> tuple[object, ...]:
        return ForeignError, (self.class_name, self.message, self.args), vars(self)

    def __str__(self) -> str:
        return f"{self.class_name}: {self.message}"


def name_of(kind: type) -> str:
    """The name of a class in a payload: `module.qualname`.

    The main program of a client is `__mp_main__` in the worker processes that it starts: that is one module.
    """
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}.{kind.__qualname__}"


def class_named(name: str, classes: Mapping[str, type]) -> type | None:
    """The class of that name among `classes`."""
    module, _, rest = name.partition(".")
    if module in ("__main__", "__mp_main__"):
        return classes.get(f"__main__.{rest}") or classes.get(f"__mp_main__.{rest}")
    return classes.get(name)


def _exceptions(module: object) -> list[type[BaseException]]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, BaseException)]


_PYTHONS = frozenset(_exceptions(builtins))
EXCEPTIONS: Mapping[str, type[BaseException]] = MappingProxyType(
    {name_of(kind): kind for kind in (*_PYTHONS, *_exceptions(errors))}
)
"""The exceptions that everybody knows: Python's own and ours."""


def builtin_of(kind: type[BaseException]) -> type[BaseException]:
    """The class of Python's own that `kind` is, or comes from: it knows how such an exception is made."""
    return next(base for base in kind.__mro__ if base in _PYTHONS)


@lru_cache(maxsize=1000)
def fields_of(kind: type) -> Mapping[str, bool]:
    """The fields of a dataclass, and whether its constructor sets them.  TypeError: it does not take just these."""
    found = {field.name: field.init for field in fields(kind)}
    try:
        inspect.signature(kind).bind(**{name: None for name, taken in found.items() if taken})
    except ValueError as error:
        raise TypeError(str(error)) from None
    return MappingProxyType(found)


def is_named_tuple(kind: type) -> bool:
    """Whether `kind` is made by `namedtuple` or `NamedTuple`."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make")


def classes_of(*annotations: object) -> dict[str, type]:
    """The classes that type hints name, however deep, as `decode` wants them.

    They are Enums, dataclasses, named tuples and exceptions: in arguments of generic types, in unions, and in the
    fields of such classes.  Hints that are text, because what they name was not there, are passed by.
    """
    found: dict[str, type] = {}
    seen: list[object] = []
    ids: set[int] = set()
    waiting = list(annotations)
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in ids:
            continue
        seen.append(annotation)  # kept, or another object might get its id
        ids.add(id(annotation))
        if isinstance(annotation, type) and _is_ours(annotation):
            found.setdefault(name_of(annotation), annotation)
        waiting += _inside(annotation)
    return found


def _is_ours(kind: type) -> bool:
    if issubclass(kind, BaseException):
        return name_of(kind) not in EXCEPTIONS
    return issubclass(kind, Enum) or is_dataclass(kind) or is_named_tuple(kind)


def _inside(annotation: object) -> list[object]:
    """What `annotation` is made of."""
    if isinstance(annotation, list | tuple):
        return list(annotation)
    if isinstance(annotation, Enum):  # in a Literal
        return [type(annotation)]
    if isinstance(annotation, typing.TypeVar):
        return [annotation.__bound__, *annotation.__constraints__]
    if isinstance(annotation, typing.NewType):
        return [annotation.__supertype__]
    if type(annotation).__name__ == "TypeAliasType":  # of Python 3.12
        return [getattr(annotation, "__value__", None)]
    arguments: list[object] = [typing.get_origin(annotation), *typing.get_args(annotation)]
    if isinstance(annotation, type) and (
        is_dataclass(annotation) or is_named_tuple(annotation) or typing.is_typeddict(annotation)
    ):
        arguments += hints_of(annotation).values()
    return arguments


def hints_of(thing: Any) -> dict[str, Any]:
    """The type hints of a function or a class, without those that name what is there for type checkers alone."""
    with contextlib.suppress(Exception):
        return typing.get_type_hints(thing)
    found: dict[str, Any] = {}
    for each in reversed(getattr(thing, "__mro__", (thing,))):
        names = getattr(inspect.unwrap(each), "__globals__", None) or vars(sys.modules.get(each.__module__, builtins))
        for name, hint in getattr(each, "__annotations__", {}).items():
            with contextlib.suppress(Exception):
                found |= typing.get_type_hints(SimpleNamespace(__annotations__={name: hint}), names)
    return found
