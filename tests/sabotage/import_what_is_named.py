"""A payload that names a class has its module imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from taskqueue.formats import reading

FAILS = ("test_values_classes.py::test_a_payload_never_causes_an_import",)

class_named = reading.class_named


def careless(name: str, classes: Mapping[str, type]) -> type | None:
    module, _, rest = name.rpartition(".")
    return class_named(name, classes) or getattr(importlib.import_module(module), rest, None)


reading.class_named = careless
