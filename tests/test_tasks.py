"""Task spaces: names, options, and the worker that calls tasks, without any broker."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from taskqueue.tasks import TaskSpace, current, task_of


def function(value: int = 1) -> Callable[[], int]:
    """A new one each time: a function knows the task that it is."""

    def one() -> int:
        return value

    return one


class Stock:
    def __init__(self) -> None:
        self.count = 3

    def take(self, count: int) -> int:
        self.count -= count
        return self.count


def test_a_task_stays_the_function_that_it_is() -> None:
    space = TaskSpace("shop.mail")

    @space.task
    def send(order: int) -> str:
        """Send it."""
        return str(order)

    @space.task(retries=3, name="again")
    async def later() -> int:
        return 1

    assert send(7) == "7" and send.__doc__ == "Send it."
    assert task_of(send).name == "shop.mail.send"
    assert list(space.tasks) == ["shop.mail.send", "shop.mail.again"]
    assert task_of(later).options == {"retries": 3}


def test_a_name_that_is_taken_is_an_error_unless_it_is_said_to_be_replaced() -> None:
    space = TaskSpace("shop")
    space.task(function())

    with pytest.raises(ValueError, match=r"there is a task shop\.one already"):
        space.task(function(2))
    two = space.task(replace=True)(function(2))
    assert space.tasks["shop.one"].function is two


def test_methods_of_objects_are_tasks_each_of_its_object() -> None:
    space = TaskSpace("shop")
    stock, other, third = Stock(), Stock(), Stock()

    assert space.expose(stock.take) == stock.take
    space.expose(other.take, name="other")

    assert task_of(stock.take).name == "shop.take" and task_of(other.take).name == "shop.other"
    assert task_of(stock.take).function(1) == 2 and other.count == 3
    with pytest.raises(TypeError, match="is no task"):
        task_of(third.take)
    with pytest.raises(TypeError, match="written in Python"):
        space.expose([].append)


def test_spaces_are_included_with_their_names() -> None:
    shop, mail = TaskSpace("shop"), TaskSpace("shop.mail")
    shop.task(function())
    mail.task(function())

    shop.include(mail)
    shop.include(mail)

    assert list(shop.tasks) == ["shop.one", "shop.mail.one"]
    other = TaskSpace("shop.mail")
    other.task(function())
    with pytest.raises(ValueError, match=r"shop\.mail\.one already"):
        shop.include(other)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"retrys": 3}, TypeError, "unknown option 'retrys' of a task: expected retries, "),
        ({"on_error": "ignore"}, ValueError, "on_error 'ignore': expected 'fail' or 'pass'"),
        ({"time_limit": 0}, ValueError, "time_limit 0"),
        ({"retries": -1}, ValueError, "retries -1"),
        ({"result_timeout": float("nan")}, ValueError, "result_timeout nan"),
        ({"retries": 2.5}, TypeError, "retries 2.5: expected a whole number"),
        ({"priority": "high"}, TypeError, "priority 'high': expected a whole number"),
        ({"retry_on": [OSError]}, TypeError, "expected a class of exceptions, or a tuple of them"),
        ({"retry_on": (OSError, "ValueError")}, TypeError, "expected a class of exceptions"),
        ({"id": 5}, TypeError, "id 5: expected text, or a function"),
        ({"name": "a b"}, ValueError, "name 'a b' of .*: expected words with dots"),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_said(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        TaskSpace("shop").task(**options)(function())


@pytest.mark.parametrize("name", ["", ".", "a b", "shop.", ".mail", "shop..mail"])
def test_names_of_spaces_are_words_with_dots(name: str) -> None:
    with pytest.raises(ValueError, match="expected words with dots"):
        TaskSpace(name)


@pytest.mark.parametrize("main", ["__main__", "__mp_main__"])
def test_spaces_of_a_main_file_have_one_name_in_the_program_and_in_its_worker_processes(main: str) -> None:
    assert TaskSpace(main).name == "__main__"
    assert TaskSpace(f"{main}.mail").name == "__main__.mail"
    assert TaskSpace(f"{main}2").name == f"{main}2"


def test_what_can_be_no_task_leaves_nothing_behind() -> None:
    space, other = TaskSpace("shop"), TaskSpace("shop")
    for wrong in (len, Stock().take, classmethod(function()), functools.partial(function(), 1)):
        with pytest.raises((TypeError, ValueError), match=r"space\.expose|name=\.\.\."):
            space.task(wrong)
    with pytest.raises(TypeError, match="expected one function"):
        space.task(function(), function())  # type: ignore[call-overload]
    assert not space.tasks

    space.task(name="two")(function())
    other.task(name="three")(function())
    other.task(name="two")(function())
    with pytest.raises(ValueError, match="already"):
        space.include(other)
    assert list(space.tasks) == ["shop.two"]


def test_static_methods_are_tasks_and_others_have_to_be_exposed() -> None:
    space = TaskSpace("shop")

    class Depot:
        @space.task
        @staticmethod
        def size(of: int) -> int:
            return of

        @space.task
        def take(self, count: int) -> int:
            return count

    assert task_of(Depot.size).function(3) == Depot.size(3) == Depot().size(3) == 3
    assert task_of(Depot().size).name == "shop.size"
    with pytest.raises(TypeError, match=r"Depot\.take is a method of .*space\.expose"):
        task_of(Depot().take)


def test_what_is_no_task_is_refused_with_the_remedy() -> None:
    functions: list[Callable[..., Any]] = [function(), len, lambda: 1]
    for each in functions:
        with pytest.raises(TypeError, match=r"is no task: expected a function that @space\.task"):
            task_of(each)


def test_outside_of_a_task_there_is_none() -> None:
    with pytest.raises(LookupError, match="no task is being run"):
        current()
