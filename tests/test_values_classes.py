"""Classes that a payload names: what it reaches of them, and what names them."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypeVar

import pytest
from valued import Basket, Colour, DiskFull, Level, Point, Price, Shelf, Strict, form, marked, sent

from taskqueue.errors import FormatError, UnknownTask
from taskqueue.formats.classes import hints_of
from taskqueue.formats.values import (
    ForeignError,
    classes_of,
    decode,
    encode,
)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of what is imported, while a package `imported` could be: as a module, and as a time zone."""
    for package in ("imported", "tzdata/zoneinfo/imported"):
        (tmp_path / package).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield before
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_payload_never_causes_an_import(importable: set[str]) -> None:
    for text in (
        '{"$enum": ["imported.Colour", "RED"]}',
        '{"$dataclass": ["imported.Price", {}]}',
        '{"$namedtuple": ["imported.Point", [1]]}',
        '{"$exception": {"class": "imported.Error", "message": "", "args": [], "attributes": {}}}',
    ):
        with suppress(FormatError):
            decode(marked(text))

        assert set(sys.modules) == importable


def test_a_time_zone_that_is_not_there_is_not_imported(importable: set[str]) -> None:
    for zone in ("imported", "imported/Zone"):
        with pytest.raises(FormatError, match=f"the time zone '{zone}' is not installed here"):
            decode(marked(json.dumps({"$datetime": {"at": "2024-01-01", "zone": zone}})))

    assert set(sys.modules) == importable


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"$enum": ["valued.Colour", "mro"]}', "has no member 'mro'"),
        ('{"$enum": ["valued.Price", "RED"]}', "is no Enum"),
        ('{"$dataclass": ["valued.Colour", {}]}', "is no dataclass"),
        ('{"$dataclass": ["valued.Price", {"amount": 1, "__class__": 1}]}', "has no field '__class__'"),
        ('{"$dataclass": ["valued.Price", {}]}', "missing 1 required positional argument: 'amount'"),
        ('{"$dataclass": ["valued.Strict", {"amount": -1}]}', "ValueError: less than nothing"),
        ('{"$namedtuple": ["valued.Price", [1]]}', "is no named tuple"),
        ('{"$namedtuple": ["valued.Point", [1]]}', "Expected 2 arguments, got 1"),
        ('{"$dataclass": ["builtins.eval", {}]}', "'builtins.eval' is not named"),
    ],
)
def test_a_payload_reaches_nothing_of_a_class_but_its_members_and_fields(text: str, detail: str) -> None:
    with pytest.raises(FormatError, match=detail):
        decode(marked(text), classes=classes_of(Colour, Price, Point, Strict))


def test_an_exception_of_a_payload_is_none_of_another_class() -> None:
    text = '{"$exception": {"class": "%s", "message": "gone", "args": ["rm -rf"], "attributes": {}}}'

    for name in ("builtins.eval", "os.system", "valued.Price", "ValueError", "builtins.Warning.__new__"):
        error = decode(marked(text % name), classes=classes_of(Price))
        assert isinstance(error, ForeignError)
        assert (error.class_name, error.message, error.args) == (name, "gone", ("rm -rf",))
        assert str(error) == f"{name}: gone"


def test_an_exception_has_what_its_class_makes_of_its_arguments() -> None:
    full = decode(sent(DiskFull("/srv")), classes=classes_of(DiskFull))
    undecodable = decode(sent(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why")))

    assert isinstance(full, DiskFull)
    assert (full.errno, full.strerror, full.filename, full.place) == (28, "full", "/srv", "/srv")
    assert isinstance(undecodable, UnicodeDecodeError)
    assert str(undecodable) == "'utf-8' codec can't decode byte 0xff in position 0: why"


def test_an_exception_that_nobody_names_can_be_pickled() -> None:
    error = ForeignError("shop.Declined", "declined: 7", (7,))
    error.add_note("by the bank")

    back = pickle.loads(pickle.dumps(error))

    assert (str(back), back.args, back.class_name) == ("shop.Declined: declined: 7", (7,), "shop.Declined")
    assert back.__notes__ == ["by the bank"]


def test_a_dataclass_comes_back_as_it_was_whatever_its_constructor_makes_of_its_arguments() -> None:
    value = Strict(5)
    value.amount = 7

    assert decode(sent(value), classes=classes_of(Strict)) == value


def test_a_dataclass_of_an_older_sender_has_the_defaults_of_its_reader() -> None:
    payload = marked('{"$dataclass": ["valued.Price", {"amount": 1}]}')

    assert decode(payload, classes=classes_of(Price)) == Price(1, Colour.RED)


def test_the_main_program_and_what_its_worker_processes_import_it_as_are_one_module() -> None:
    mains = [Enum("Main", ["A"], module=name) for name in ("__main__", "__mp_main__")]

    for sender in mains:
        assert form(sender["A"]) == {"$enum": ["__main__.Main", "A"]}
        for reader in mains:
            assert decode(sent(sender["A"]), classes=classes_of(reader)) is reader["A"]
            assert decode(sent(sender["A"]), classes={f"{reader.__module__}.Main": reader}) is reader["A"]
            encode(sender["A"], what="the result", classes=classes_of(reader))


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        (int, ""),
        (None, ""),
        (Any, ""),
        ("Price", ""),
        (list["Price"], ""),
        (Colour, "Colour"),
        (list[Colour], "Colour"),
        (dict[str, tuple[Colour, ...]] | None, "Colour"),
        (Callable[[Colour], Level], "Colour Level"),
        (Annotated[Colour, {}], "Colour"),
        (Literal[Level.LOW, "a"], "Level"),
        (NewType("Paint", Colour), "Colour"),
        (TypeVar("Bound", bound=Colour), "Colour"),
        (Price, "Colour Price"),
        (Shelf[Point], "Colour Level Point Price Shelf"),
        (Basket, "Level Point"),
        (ValueError, ""),
        (UnknownTask, ""),
        (json.JSONDecodeError, "JSONDecodeError"),
    ],
)
def test_type_hints_name_classes_however_deep(annotation: object, names: str) -> None:
    found = classes_of(annotation)

    assert sorted(kind.__name__ for kind in found.values()) == names.split()
    assert all(name == f"{kind.__module__}.{kind.__qualname__}" for name, kind in found.items())


def test_a_class_that_names_itself_is_found_once() -> None:
    assert list(classes_of(Tree, list[Tree])) == ["test_values_classes.Tree"]


@dataclass
class Tree:
    inner: list[Tree]


@dataclass
class Odd:
    unknown: Nowhere  # type: ignore[name-defined]  # noqa: F821
    colour: Colour


def partly(order: Odd, connection: Nowhere | None = None) -> list[Colour]:  # type: ignore[name-defined]  # noqa: F821
    return [order.colour]


def test_hints_that_can_not_be_told_are_passed_by() -> None:
    assert hints_of(partly) == {"order": Odd, "return": list[Colour]}
    assert hints_of(functools.partial(partly)) == {}
    assert set(classes_of(Odd)) == {"test_values_classes.Odd", "valued.Colour"}
