"""One small sabotage per promise at least, and the proof that the promise's own test fails with it.

A sabotage is a module here that replaces something of the project when it is imported, and says in `FAILS` which tests
must fail for it.  By hand:

    TASKQUEUE_SABOTAGE=NAME .venv/bin/python -m pytest tests/test_amqp_faults.py

The test process imports it (conftest.py), and so does every interpreter of the installation that daemons run from
(installations.py).  `outcomes` runs the tests so, in a process of their own; the ordinary run shows that they pass
without it.  Whoever adds a promise adds a module here.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["names", "outcomes"]

TESTS = Path(__file__).resolve().parent.parent
TIMEOUT = 150.0  # seconds for all tests of one sabotage
PATIENCE = 10.0  # seconds that they wait for what does not come: that is what a sabotage does


def names() -> list[str]:
    """All sabotages."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def outcomes(name: str, urls: Sequence[str], wheels: Path) -> dict[str, str]:
    """Run the tests that the sabotage `name` is to fail; what became of each: `passed`, `failed` or `error`.

    urls: virtual hosts of a broker that is there, for tests that need one.  wheels: what an installation gets.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-q",
            "-rA",
            "--tb=no",
            "--show-capture=no",
            "--timeout=40",
        ]
        + [f"{TESTS}/{test}" for test in _fails(name)],
        cwd=TESTS.parent,
        env={
            **os.environ,
            "TASKQUEUE_SABOTAGE": name,
            "TASKQUEUE_TEST_URLS": " ".join(urls),
            "TASKQUEUE_TEST_WHEELS": str(wheels),
            "TASKQUEUE_TEST_PATIENCE": str(PATIENCE),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR", "SKIPPED") and "::" in rest:
            found[rest.split(" ")[0]] = word.lower()
    if (
        not found
        and done.returncode == 0
        and done.stdout.rstrip().rpartition("\n")[2].partition(" ")[2][:8] == "skipped "
    ):
        return dict.fromkeys(_fails(name), "skipped")  # pytest's summary names no test then
    if not found:
        raise RuntimeError(f"{name}: no test ran:\n{done.stdout}{done.stderr}")
    return found


def _fails(name: str) -> tuple[str, ...]:
    """FAILS of a sabotage, read and not imported: that would apply it here."""
    for statement in ast.parse((Path(__file__).parent / f"{name}.py").read_text()).body:
        match statement:
            case ast.Assign(targets=[ast.Name("FAILS")], value=value):
                tests: tuple[str, ...] = ast.literal_eval(value)
                return tests
    raise LookupError(f"sabotage {name} says nowhere which tests FAILS")
