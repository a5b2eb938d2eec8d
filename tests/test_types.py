"""What mypy and basedpyright say of programs that use the client: tests/typing/client.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PROGRAM = TOP / "tests" / "typing" / "client.py"
CHECKERS = {
    "mypy": ["mypy", "--strict", "--warn-unused-ignores", "--no-error-summary", "--config-file="],
    "basedpyright": ["basedpyright"],
}


def complaints(checker: str, program: Path, cache: Path) -> list[int]:
    """The lines of `program` that `checker` complains of."""
    command = [str(Path(sys.executable).parent / word) if word == checker else word for word in CHECKERS[checker]]
    if checker == "mypy":
        command += ["--cache-dir", str(cache)]
    environment = {**os.environ, "MYPYPATH": str(TOP)}  # it sees no editable installation
    done = subprocess.run(
        [*command, program.name], cwd=program.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return sorted({int(line) for line in re.findall(rf"{program.name}:(\d+)(?::\d+)?(?::| -) error", done.stdout)})


@pytest.fixture
def program(tmp_path: Path) -> Path:
    config = PROGRAM.with_name("pyrightconfig.json").read_text().replace("../..", str(TOP))
    (tmp_path / "pyrightconfig.json").write_text(config)
    shutil.copy(PROGRAM, tmp_path)
    return tmp_path / PROGRAM.name


@pytest.mark.parametrize("checker", CHECKERS)
def test_what_is_right_is_taken_and_what_is_wrong_is_refused(checker: str, program: Path, tmp_path: Path) -> None:
    assert complaints(checker, program, tmp_path / "cache") == []

    text = program.read_text()
    wrong = [number for number, line in enumerate(text.splitlines(), 1) if "# type: ignore" in line]
    program.write_text(re.sub(r"  # (type|pyright): ignore\[.*?\]", "", text))
    assert complaints(checker, program, tmp_path / "cache") == wrong
    assert len(wrong) == 7
