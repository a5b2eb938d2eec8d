"""examples/filestat against the tools that everybody has."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "filestat" / "filestat.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("filestat", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin = load()
CHUNK = plugin.CHUNK


def run(*command: str | Path) -> list[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


def described(body: object) -> dict[str, Any]:
    result: dict[str, Any] = plugin.Worker.factory().handle_task(body)
    return result


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b" ",
        b"word",
        b"two words",
        b"two\n\nlines\n",
        b" \t\r\n\v\f ",
        b"a\tb\rc\nd\ve\ff g",
        b"nul\0inside of\0words",
        "gr\u00fc\u00dfe\u00a0x \u2003y".encode(),
        b"x" * CHUNK,
        b"x" * (CHUNK + 1),
        b"x" * (CHUNK - 1) + b" " + b"y" * CHUNK,
        b"x" * CHUNK + b" y",
        b"x" * CHUNK + b"\ny" + b" " * CHUNK,
        b" " * CHUNK + b"x",
        b"x" * (2 * CHUNK - 1) + b"\n",
        bytes(random.Random(4711).choices(b"ab \n\t", k=3 * CHUNK + 7)),
    ],
    ids=range(18),
)
def test_digest_size_lines_and_words_are_those_of_sha256sum_and_wc(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "two words\u00fc"
    path.write_bytes(content)

    found = described(str(path))

    lines, words, size, *_ = map(int, run("wc", "-lwc", path)[:3])
    digest = run("sha256sum", "--", path)[0].removeprefix("\\")
    assert found == {"path": str(path), "sha256": digest, "size": size, "lines": lines, "words": words}


def test_words_of_binary_files_are_runs_of_what_is_not_white_space(tmp_path: Path) -> None:
    # Not compared with wc: releases of coreutils differ on words without a printable character.
    content = random.Random(4711).randbytes(3 * CHUNK)
    path = tmp_path / "binary"
    path.write_bytes(content)

    found = described(str(path))

    assert found["words"] == len(content.split())
    assert found["lines"] == int(run("wc", "-l", path)[0])
    assert found["sha256"] == run("sha256sum", path)[0]


def test_a_path_may_come_in_an_object(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\n")

    assert described({"path": str(path), "more": 1}) == described(str(path))


@pytest.mark.parametrize("body", [None, 1, [], {}, {"path": 1}, b"/etc/passwd"])
def test_what_is_no_path_fails_with_a_sentence(body: object) -> None:
    with pytest.raises(TypeError, match="must be a path or an object with a path"):
        described(body)


def test_a_file_that_is_not_there_fails_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        described(str(tmp_path / "missing"))


def test_a_large_file_takes_no_more_memory_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (64 * CHUNK))

    tracemalloc.start()
    try:
        described(str(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 8 * CHUNK
