"""What holds as soon as the packages are installed: the first file of these tests, in the order of their names."""

from __future__ import annotations

import json

import pytest
from machine import Machine
from operating import drain, publish, result

pytestmark = [pytest.mark.deb, pytest.mark.timeout(300)]


def test_with_their_default_configuration_a_message_of_any_program_comes_back_as_a_result(installed: Machine) -> None:
    publish(installed, "filestat /etc/debian_version")

    assert json.loads(result(installed))["path"] == "/etc/debian_version"


def test_the_example_of_a_format_is_understood(installed: Machine) -> None:
    drain(installed)
    form = "worker_type=filestat&path=/etc/hostname"

    publish(installed, form, content_type="application/x-www-form-urlencoded")

    assert json.loads(result(installed))["path"] == "/etc/hostname"
