"""No privileges are left (promise 9), seen from inside of worker processes; and what is said where they can't be."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from installations import Installation
from servers import RabbitMQ
from system import Daemon, System, until, users

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users")
SECRET = RabbitMQ.password
QUOTED = "sesame%2Fouvre%3Atoi%40"


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def uids(pid: int) -> list[int]:
    (line,) = re.findall(r"^Uid:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return [int(uid) for uid in line.split()]


@needs_root
def test_a_worker_process_has_the_rights_of_its_user_and_no_others(system: System) -> None:
    with users("tqtest1", "tqtest2"):
        subprocess.run(["usermod", "--append", "--groups", "tqtest2,games", "tqtest1"], check=True, capture_output=True)
        user, service = pwd.getpwnam("tqtest1"), pwd.getpwnam("daemon")
        config = system.config(
            "[DEFAULT]\nworkers = 0\n[inspect]\nworkers = 1\nuser = tqtest1\n"
            "environment = MARK=visible-in-memory\ntoken = a-setting\n",
            mode=0o600,
            user="daemon",
        )
        secret_file = system.directory / "root-only"
        secret_file.write_text("secret")
        secret_file.chmod(0o600)
        # Open in the manager, so that a descriptor too many would be seen.
        with secret_file.open() as file:
            os.set_inheritable(file.fileno(), True)
            os.dup2(file.fileno(), 77)
            pool = system.workerpool(config, "-p", system.directory / "pid", LANG="C.UTF-8", BROKER_PASSWORD=SECRET)
            dispatcher = system.dispatcher(config)
        os.close(77)
        (worker,) = pool.wait_ready(1)
        (carrier,) = pool.carriers
        texts = {"password": halves(SECRET), "quoted": halves(QUOTED), "mark": halves("visible-in-memory")}
        asked = {
            "files": [str(secret_file), str(config), "/etc/shadow"],
            "texts": texts,
            "pids": [carrier, pool.pid, dispatcher.pid],
        }

        properties = {"content_type": "application/json", "headers": {"worker_type": "inspect"}}
        system.publish("taskqueue", json.dumps(asked), **properties)
        (result,) = system.collect("results", 1)

        assert result.headers["status"] == "succeeded", result.headers
        found = result.value
        assert found["uids"] == [user.pw_uid] * 3
        assert found["gids"] == [user.pw_gid] * 3
        assert found["groups"] == sorted(set(os.getgrouplist("tqtest1", user.pw_gid)))
        assert {grp.getgrnam("tqtest2").gr_gid, grp.getgrnam("games").gr_gid} < set(found["groups"])
        assert found["capabilities"] == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapAmb": 0}
        descriptors = found["descriptors"]
        sockets = [name for name, target in descriptors.items() if target.startswith("socket:")]
        assert len(sockets) == 1 and descriptors.keys() == {"0", "1", "2", *sockets}, descriptors
        assert descriptors["0"] == "/dev/null"
        environment = found["environment"]
        assert environment.pop("MARK") == "visible-in-memory"
        assert environment.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"  # set by the interpreter itself
        assert environment == {
            "HOME": user.pw_dir, "USER": "tqtest1", "LOGNAME": "tqtest1", "SHELL": user.pw_shell,
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in ("TZ", "LC_ALL") if name in os.environ},
        }  # fmt: skip
        assert found["death_signal"] == signal.SIGKILL
        assert found["leads_its_group"]
        assert (found["pid"], found["parent"]) == (worker, pool.pid)
        assert found["root again"] == ["PermissionError"] * 3
        assert found["files"] == dict.fromkeys(asked["files"], "PermissionError")
        assert found["own memory"] == {"password": False, "quoted": False, "mark": True}
        for place, what in found["others"].items():
            assert what == ([] if place.endswith("/cmdline") else "PermissionError"), place

        # Carrier and dispatcher need no rights either.
        assert uids(carrier) == uids(dispatcher.pid) == [service.pw_uid] * 4
        assert uids(pool.pid) == [0] * 4
        status = Path(f"/proc/{dispatcher.pid}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        pool.stop()
        dispatcher.stop()
        for daemon in (pool, dispatcher):
            assert SECRET not in daemon.log and QUOTED not in daemon.log


def start_as(name: str, system: System, config: Path) -> Daemon:
    config.chmod(0o644)
    prefix = ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
    return system.workerpool(config, prefix=prefix)


@needs_root
def test_without_root_a_group_of_another_user_is_an_error_of_its_own(system: System) -> None:
    with users("tqtest1", "tqtest2"):
        config = system.config(
            "[DEFAULT]\nworkers = 0\n[echo]\nworkers = 1\nuser = tqtest2\n[whoami]\nworkers = 1\n"
            "[worker2]\nworkers = 1\nuser = tqtest1\n"
        )
        pool = start_as("tqtest1", system, config)
        pool.wait_ready(2)
        pool.logged(
            "ERROR .*: group echo can't be started: user 'tqtest2': only root can start processes of other users"
        )

        system.publish("worker_whoami", "x")
        (result,) = system.collect("results", 1)

        assert (result.value["uid"], result.value["user"]) == (pwd.getpwnam("tqtest1").pw_uid, "tqtest1")
        assert pool.ready("whoami") and pool.ready("worker2")
        pool.signal(signal.SIGUSR1)
        pool.logged("group echo: 1 wanted, 0 there, 0 ready; failing")
        assert pool.log.count("only root can start") == 1
        pool.stop()


@needs_root
def test_an_installation_that_the_user_can_not_reach_is_an_error_of_its_group(
    system: System, installation: Installation
) -> None:
    with users("tqtest1"), tempfile.TemporaryDirectory(prefix="taskqueue-closed-", dir="/tmp") as closed:
        # The interpreter of a virtual environment is where its command is started: one in a closed directory.
        inside = Path(closed) / "venv"
        subprocess.run(["cp", "--archive", installation.prefix, inside], check=True)
        script = inside / "bin" / "taskqueue-workerpool"
        script.write_text(script.read_text().replace(str(installation.prefix), str(inside)))
        config = system.config(
            "[DEFAULT]\nworkers = 0\n[echo]\nworkers = 1\nuser = tqtest1\n[whoami]\nworkers = 1\nuser = root\n"
        )
        command = [script, "-f", "-c", config]
        pool = Daemon(command, system.directory / "closed.log", system.environment())
        system.daemons.append(pool)

        pool.logged(
            f"ERROR .*: group echo can't be started: user 'tqtest1' can't enter or read {closed}, and so can't run "
            f"{inside}/bin/python.*; install taskqueue where every user can read it"
        )

        pool.wait_ready(1, "whoami")
        assert not pool.ready("echo")
        pool.stop()
        assert "Traceback" not in pool.log


@needs_root
def test_a_user_that_does_not_exist_is_an_error_of_its_group(system: System) -> None:
    config = system.config("[DEFAULT]\nworkers = 0\n[echo]\nworkers = 1\nuser = nobody-at-all\n[whoami]\nworkers = 1\n")
    pool = system.workerpool(config, ready=1)
    pool.logged("ERROR .*: group echo can't be started: user 'nobody-at-all': there is no such user on this host")
    until(lambda: len(pool.ready("whoami")) == 1)
    pool.stop()
