"""When a change of what is installed counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from taskqueue.discovery import Installed, discover, marks_of
from taskqueue.watch import Watch


def test_what_is_installed_comes_back_from_its_text_also_from_another_version() -> None:
    found = discover()

    assert Installed.from_json(found.to_json()) == found
    assert Installed.from_json(found.to_json()).places == found.places
    assert Installed.from_json(json.dumps({"plugins": {"a": "b:c"}, "later": 1})).plugins == {"a": "b:c"}
    for text in ("", "[]", "nonsense"):
        with pytest.raises(ValueError, match=r".*"):
            Installed.from_json(text)


def test_a_place_that_is_changed_replaced_made_or_removed_has_another_mark(tmp_path: Path) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    seen = [marks_of([str(place)])]
    for change in (
        lambda: place.write_text("a"),
        lambda: place.write_text("other"),
        lambda: (other.write_text("other"), other.replace(place)),
        lambda: place.unlink(),
    ):
        change()
        seen.append(marks_of([str(place)]))

    assert seen[0] == seen[-1] == {str(place): ""}
    assert len({json.dumps(mark) for mark in seen}) == 4


def test_an_installation_is_another_one_for_its_plugin_alone_or_for_formats_for_all() -> None:
    def installations(**more: object) -> list[str]:
        installed = Installed(**{"plugin_marks": {"a": "1", "b": "1"}, "format_marks": {}, **more})  # type: ignore[arg-type]
        return [installed.installation(type, ["", ()]) for type in ("a", "b")]

    a, b = installations()
    assert installations() == [a, b]
    assert (
        installations(plugin_marks={"a": "2", "b": "1"})[1] == b != installations(plugin_marks={"a": "1", "b": "2"})[1]
    )
    assert not {a, b} & set(installations(format_marks={"text/x": "1"}))
    assert Installed().installation("a", ["text/plain", ()]) != Installed().installation("a", ["", ()])


def test_a_change_counts_when_it_has_been_the_same_for_a_look_and_no_package_is_being_installed(tmp_path: Path) -> None:
    async def test() -> None:
        found: asyncio.Queue[Installed] = asyncio.Queue()
        asked = 0
        free = asyncio.Event()
        enough = asyncio.Event()

        def busy() -> bool:
            nonlocal asked
            asked += 1
            if asked >= 3:
                enough.set()
            return not free.is_set()

        before = Installed(plugins={"gone": "a:b"}, places=marks_of([str(tmp_path)]))
        watch = Watch(before, found.put_nowait, busy=busy, every=0.02)
        (tmp_path / "new").touch()
        await enough.wait()
        assert found.empty()

        free.set()

        assert "gone" not in (await found.get()).plugins
        await watch.close()
        await watch.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_change_that_makes_no_difference_is_not_told(tmp_path: Path) -> None:
    async def test() -> None:
        found: list[Installed] = []
        looked = asyncio.Event()
        now = discover()
        watch = Watch(now, found.append, busy=lambda: looked.set() or False, every=0.02)
        # As a fresh interpreter sees it: without the directory of the tests.
        watch.knows(Installed(**{**fields(now), "places": marks_of([str(tmp_path)])}))
        (tmp_path / "new").touch()
        await looked.wait()
        while watch._known == marks_of([str(tmp_path)]) or str(tmp_path) in watch._known:
            await asyncio.sleep(0.01)
        await watch.close()
        assert found == []

    asyncio.run(asyncio.wait_for(test(), 60))


def fields(installed: Installed) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(installed.to_json())
    return {**loaded, "problems": installed.problems}
