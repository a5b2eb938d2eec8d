"""The configuration: no password is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from configurations import PLUGINS, problems, read

from taskqueue.config import load, mask, mask_pairs, mask_url


class TestSecrets:
    S = "s3cret"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("amqp://u:s3cret@h:5672/v", "amqp://u:***@h:5672/v"),
            ("amqp://u:s3/cr:et@x@h/v", "amqp://u:***@h/v"),
            ("amqp://:s3cret@h", "amqp://:***@h"),
            ("amqp://u:s3@h1,amqp://u:s3@h2", "amqp://u:***@h1,amqp://u:***@h2"),
            ("postgresql:///d?user=u&password=s3cret", "postgresql:///d?user=u&password=***"),
            ("host=h password='s3 cret' dbname=d", "host=h password=*** dbname=d"),
            ("amqp://u@h:5672/v", "amqp://u@h:5672/v"),
            ("amqp://[::1]:5672/%2F", "amqp://[::1]:5672/%2F"),
            ("sqlite:///dir/file", "sqlite:///dir/file"),
        ],
    )
    def test_passwords_in_urls_are_masked_and_nothing_else(self, url: str, shown: str) -> None:
        assert mask_url(url) == shown

    @pytest.mark.parametrize(
        "name",
        ["password", "passwd", "db_password", "PASSWD", "client_secret", "api_token", "ssl_key_file", "passphrase",
         "api_key", "aws_access_key_id", "password_file", "pasword"],
    )  # fmt: skip
    def test_secret_names(self, name: str) -> None:
        assert mask(name, self.S) == "***"
        assert mask_pairs(((name, self.S), ("other", "x"))) == {name: "***", "other": "x"}

    def test_repr_shows_none(self) -> None:
        config = read(f"[amqp]\npasswd = {self.S}\n[worker1]\ntoken = {self.S}\nenvironment = API_TOKEN={self.S}\n")

        assert self.S in config.url
        assert self.S not in repr(config) + str(config) + repr(config.groups)

    @pytest.mark.parametrize(
        "text",
        [
            "[amqp]\npasswd = s3cret\x01\n",
            "[amqp]\npasswd s3cret\n",
            "[amqp]\npasswd s3cret=x\n",
            "[amqp]\npasswd =\ns3cret\n",
            "[amqp]\npasword = s3cret\n",
            "[amqp]\npasswd = s3cret\npassword = s3cret\n",
            "[amqp]\nport = 1\n  passwd = s3cret s3cret\n",
            "[amqp]\nport =\n  passwd = s3cret s3cret\n",
            "[taskqueue]\nurl = htp://u:s3cret@h\n",
            "[taskqueue]\nurl = amqp://u:s3cret@h:x\n",
            "passwd = s3cret\n",
            "[worker1]\nenvironment = A_TOKEN='s3cret s3cret\n",
        ],
    )
    def test_no_problem_shows_one(self, text: str) -> None:
        assert self.S not in "\n".join(problems(text))

    def test_no_problem_with_the_urls_of_the_command_line_shows_one(self) -> None:
        assert self.S not in "\n".join(problems("", url="htp://u:s3cret@h"))

    def test_no_warning_shows_one(self, tmp_path: Path) -> None:
        path = tmp_path / "config.ini"
        path.write_text(f"[ampq]\npasswd = {self.S}\n[amqp]\npasswd={self.S}\n[taskqueue]\nurl = amqp://u:{self.S}@h\n")
        path.chmod(0o644)

        warnings = load(path, PLUGINS).warnings

        assert len(warnings) == 3 and self.S not in "\n".join(warnings)
