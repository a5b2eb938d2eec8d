"""`taskqueue check-config`."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
from configurations import DESIGN, PLUGINS

from taskqueue.cli import check_config


class TestCheckConfig:
    def check(self, path: Path, *, json: bool = False, url: str = "") -> int:
        return check_config.run(argparse.Namespace(config=str(path), url=url, json=json), PLUGINS)

    def test_it_is_a_command_that_runs_itself(self) -> None:
        parser = argparse.ArgumentParser()
        check_config.add_parser(parser.add_subparsers())

        assert parser.parse_args(["check-config"]).run is check_config.run

    def test_it_prints_the_plan_without_secrets(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"[amqp]\npasswd = s3cret\n{DESIGN}[worker3]\napi_token = s3cret\nshape = round\n[absent]\n")

        status = self.check(path)

        out, err = capsys.readouterr()
        assert status == 0 and "s3cret" not in out + err
        assert "amqp://guest:***@localhost:5672/%2F" in out
        assert re.search(r"(?m)^GROUP +TYPE +PROCESSES +USER +QUEUE +SETTINGS$", out)
        assert re.search(r"(?m)^worker2_bifh1 +worker2 +1 +bifh1 +worker_worker2$", out)
        assert re.search(r"(?m)^worker3 +worker3 +1 .* worker_worker3 +api_token = '\*\*\*', shape = 'round'$", out)
        assert re.search(r"(?m)^absent +absent +0 \(no plugin\)", out)
        assert "[absent]: no plugin for this worker type" in err

    def test_it_prints_every_problem_and_exits_with_6(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text("[worker1]\nworkers = -1\nretries = x\n")

        status = self.check(path)

        out, err = capsys.readouterr()
        assert status == 6 and out == ""
        assert [line.partition(": [")[0] for line in err.splitlines()] == [f"problem: {path}:2", f"problem: {path}:3"]

    def test_as_json_it_is_one_object_a_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"{DESIGN}[absent]\ntoken = s3cret\nenvironment = A_TOKEN=s3cret\n")

        status = self.check(path, json=True, url="amqp://u:s3cret@h")
        out = capsys.readouterr().out
        objects = [json.loads(line) for line in out.splitlines()]
        path.write_text("x")
        wrong = self.check(path, json=True)
        problem = json.loads(capsys.readouterr().out)

        assert status == 0 and "s3cret" not in out
        assert {found["kind"] for found in objects} == {"warning", "options", "group"}
        [bifh1] = [found for found in objects if found.get("group") == "worker2_bifh1"]
        assert (bifh1["processes"], bifh1["user"], bifh1["queue"]) == (1, "bifh1", "worker_worker2")
        assert wrong == 6 and problem["kind"] == "problem"

    def test_a_missing_file_exits_with_6(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(tmp_path / "nothing.ini") == 6
        assert "no such file" in capsys.readouterr().err
