"""Graphs of tasks: three times `catch`, each fed by a `left` and a `right`, and a `combine` of the three."""

import time

from taskqueue import TaskSpace

space = TaskSpace("graphs")
SECONDS = 0.03  # that each takes, to be killed in


@space.task
def left(number: int) -> int:
    time.sleep(SECONDS)
    return number


@space.task
def right(number: int) -> int:
    time.sleep(SECONDS)
    return 1000 * number


@space.task
def catch(left: int, right: int) -> int:
    time.sleep(SECONDS)
    return left + right


@space.task
def combine(caught: list[int]) -> list[int]:
    time.sleep(SECONDS)
    return caught
