"""Each promise's own test fails when the promise is broken on purpose (tests/sabotage)."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import sabotage
from servers import RabbitMQ

TOP = Path(__file__).resolve().parent.parent
NAMES = sorted(module.name for module in pkgutil.iter_modules(sabotage.__path__))
TESTS_FAILED = 1  # exit status of pytest; other ones say that there was no test, or that it could not be run


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_promise_fails_its_own_test(name: str, rabbitmq: RabbitMQ) -> None:
    module = importlib.import_module(f"sabotage.{name}")
    urls = [rabbitmq.url(rabbitmq.vhost()) for _ in range(6)]
    environment = {
        **os.environ,
        "TASKQUEUE_SABOTAGE": name,
        "TASKQUEUE_TEST_URLS": " ".join(urls),
        "TASKQUEUE_TEST_PATIENCE": "10",
    }

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(module.TEST)],
        cwd=TOP,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert run.returncode == TESTS_FAILED, f"{module.__doc__}\n{module.TEST} did not notice:\n{run.stdout[-4000:]}"
    assert " failed" in run.stdout
    assert " error" not in run.stdout.splitlines()[-1], run.stdout[-4000:]
