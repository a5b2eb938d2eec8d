"""The example file and the documentation have every option, with its default."""

from __future__ import annotations

import re

from configurations import DESIGN, TOP, read

from taskqueue.config.options import AMQP, TASKQUEUE, WORKERS


def example_options(text: str) -> dict[str, dict[str, str]]:
    """Section -> option -> default of the example file."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in text.partition("# Example")[0].splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            found[section] = {}
        elif line.startswith(";"):
            name, _, value = line[1:].partition("=")
            found[section][name.strip()] = value.strip()
    return found


class TestTheExampleFile:
    TEXT = (TOP / "config.ini.example").read_text()

    def test_it_has_every_option_with_its_default_and_no_other(self) -> None:
        tables = {"taskqueue": TASKQUEUE, "amqp": AMQP, "DEFAULT": WORKERS}

        assert example_options(self.TEXT) == {
            section: {option.name: option.default for option in table.values()} for section, table in tables.items()
        }

    def test_it_has_the_meaning_of_every_option_above_it(self) -> None:
        blocks = [block.splitlines() for block in self.TEXT.partition("# Example")[0].strip().split("\n\n")]
        comments = [(lines[-1], " ".join(line.removeprefix("# ") for line in lines[:-1])) for lines in blocks]

        for table in (TASKQUEUE, AMQP, WORKERS):
            for option in table.values():
                assert (f";{option.name} = {option.default}".strip(), option.meaning) in comments

    def test_as_it_stands_it_means_the_same_as_an_empty_file(self) -> None:
        assert read(self.TEXT) == read("")

    def test_with_its_options_it_means_the_same_as_an_empty_file(self) -> None:
        options = re.sub(r"(?m)^;(\w+ =)", r"\1", self.TEXT)

        config = read(options.replace("url =\n", ""))

        assert config.url == "amqp://guest:guest@localhost:5672/%2F"
        assert config == read("", url=config.url)

    def test_its_example_is_that_of_the_design(self) -> None:
        example = re.sub(r"(?m)^;", "", self.TEXT.partition("# Example")[2].partition("\n\n")[2])

        assert read(example) == read(DESIGN)


def test_the_documentation_names_every_option_with_its_default() -> None:
    text = (TOP / "docs/configuration.md").read_text()

    for table in (TASKQUEUE, AMQP, WORKERS):
        for option in table.values():
            assert f"| `{option.name}` | {f'`{option.default}`' if option.default else 'empty'} |" in text
            assert f"`{option.alias or option.name}`" in text
