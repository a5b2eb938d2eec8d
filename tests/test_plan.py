"""Which worker processes are started and stopped, and when."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from taskqueue.config import Config, Group
from taskqueue.plan import Action, Child, Deaths, Start, Stop, died, is_failing, plan, process_of, want

A = Group(name="a", type="a", entry_point="m:a", workers=2)
B = Group(name="b", type="b", entry_point="m:b", workers=1)
NOW = 1000.0


def child(pid: int, group: Group = A, started: float = 0.0, *, stopping: bool = False) -> Child:
    return Child(pid=pid, group=group, started=started, stopping=stopping)


def test_groups_without_plugin_or_processes_are_not_wanted() -> None:
    groups = (A, B, replace(A, name="c", entry_point=""), replace(A, name="d", workers=0))

    assert want(Config(groups=groups)) == Counter({A: 2, B: 1})


class TestPlan:
    def test_what_is_missing_is_started_now(self) -> None:
        assert plan([child(1)], want={A: 2, B: 1}, deaths={}, now=NOW) == [Start(A, NOW), Start(B, NOW)]

    def test_what_is_there_is_left_alone(self) -> None:
        assert plan([child(1), child(2), child(3, B)], want={A: 2, B: 1}, deaths={}, now=NOW) == []

    def test_of_too_many_the_youngest_are_stopped(self) -> None:
        children = [child(1, started=5), child(2, started=1), child(3, started=9)]

        assert plan(children, want={A: 1}, deaths={}, now=NOW) == [Stop(1), Stop(3)]

    def test_what_is_not_wanted_any_more_is_stopped_once(self) -> None:
        assert plan([child(1), child(2, B, stopping=True)], want={}, deaths={}, now=NOW) == [Stop(1)]

    def test_a_changed_group_is_stopped_and_started_when_the_old_process_has_ended(self) -> None:
        new = replace(B, settings=(("shape", "round"),))

        first = plan([child(1, B), child(2), child(3)], want={A: 2, new: 1}, deaths={}, now=NOW)
        meanwhile = plan([child(1, B, stopping=True), child(2), child(3)], want={A: 2, new: 1}, deaths={}, now=NOW)
        then = plan([child(2), child(3)], want={A: 2, new: 1}, deaths={}, now=NOW)

        assert (first, meanwhile, then) == ([Stop(1)], [], [Start(new, NOW)])

    def test_another_number_of_processes_restarts_none(self) -> None:
        more, fewer = replace(A, workers=3), replace(A, workers=1)
        children = [child(1, started=1), child(2, started=2)]

        assert plan(children, want={more: 3}, deaths={}, now=NOW) == [Start(more, NOW)]
        assert plan(children, want={fewer: 1}, deaths={}, now=NOW) == [Stop(2)]

    def test_a_group_never_has_more_processes_than_wanted(self) -> None:
        assert plan([child(1), child(2, stopping=True)], want={A: 2}, deaths={}, now=NOW) == []

    def test_a_group_that_keeps_dying_is_started_later_and_others_are_not(self) -> None:
        deaths = {replace(A, workers=7): Deaths(count=4, last=NOW - 0.1)}

        actions = plan([], want={A: 1, B: 1}, deaths=deaths, now=NOW)

        assert actions == [Start(A, NOW - 0.1 + 0.4), Start(B, NOW)]

    def test_a_delay_that_has_passed_is_none(self) -> None:
        assert plan([], want={B: 1}, deaths={B: Deaths(count=9, last=NOW - 100)}, now=NOW) == [Start(B, NOW)]

    def test_the_successor_of_one_that_is_recycled_is_started_ahead(self) -> None:
        recycled = replace(child(1), recycling=True)

        assert plan([recycled], want={A: 1}, deaths={}, now=NOW) == [Start(A, NOW)]
        assert plan([recycled, child(2)], want={A: 1}, deaths={}, now=NOW) == []

    def test_one_that_is_recycled_and_not_wanted_any_more_is_stopped_as_any_other(self) -> None:
        recycled, changed = replace(child(1), recycling=True), replace(A, retries=1)

        assert plan([recycled], want={changed: 1}, deaths={}, now=NOW) == [Stop(1)]

    def test_it_is_settled_once_its_actions_are_done(self) -> None:
        new = replace(A, retries=1, workers=3)
        children = [child(1), child(2, B), child(3, B, stopping=True)]
        actions: list[Action] = []
        for _ in range(3):
            actions = plan(children, want={new: 3}, deaths={}, now=NOW)
            stopped = {action.pid for action in actions if isinstance(action, Stop)}
            started = [action.group for action in actions if isinstance(action, Start)]
            children = [found for found in children if found.pid not in stopped and not found.stopping]
            children += [child(100 + n, group, NOW) for n, group in enumerate(started, len(children))]

        assert actions == []
        assert [found.group for found in children] == [new] * 3


class TestDeaths:
    def test_the_first_replacement_comes_at_once_and_the_next_ones_later_and_later(self) -> None:
        now, deaths, delays = NOW, None, []
        for _ in range(14):
            deaths = died(deaths, started=now, now=now + 1, jitter=1.0)
            delays.append(round(deaths.restart - (now + 1), 6))
            now = deaths.restart

        assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60, 60]

    def test_jitter_shortens_by_up_to_a_half(self) -> None:
        assert Deaths(count=5, last=NOW, jitter=0.0).restart == NOW + 0.4
        assert Deaths(count=5, last=NOW, jitter=1.0).restart == NOW + 0.8
        assert Deaths(count=99, last=NOW, jitter=1.0).restart == NOW + 60

    def test_a_process_that_ran_long_enough_ends_the_row(self) -> None:
        deaths = died(Deaths(count=7, last=NOW), started=NOW, now=NOW + 10, jitter=1.0)

        assert deaths.restart == NOW + 10
        assert deaths.count == 0

    def test_a_process_that_brought_a_workitem_to_its_end_ends_the_row_however_short_it_lived(self) -> None:
        deaths = died(Deaths(count=7, last=NOW), started=NOW, now=NOW + 0.1, jitter=1.0, worked=True)

        assert (deaths.count, deaths.restart) == (0, NOW + 0.1)

    def test_processes_that_die_together_are_one_round(self) -> None:
        deaths = None
        for n in range(8):
            deaths = died(deaths, started=NOW, now=NOW + 1 + n / 100, jitter=1.0)

        assert deaths == Deaths(count=1, last=NOW + 1)

    def test_a_death_long_after_the_row_begins_a_new_one(self) -> None:
        row = Deaths(count=7, last=NOW)

        assert died(row, started=NOW + 3600, now=NOW + 3601, jitter=1.0).count == 1

    def test_three_quick_deaths_in_a_row_are_failing_until_a_replacement_stays(self) -> None:
        two, three = Deaths(count=2, last=NOW), Deaths(count=3, last=NOW)

        assert not is_failing(None, now=NOW)
        assert not is_failing(two, now=NOW)
        assert is_failing(three, now=NOW)
        assert is_failing(three, now=NOW + 10)
        assert not is_failing(three, now=NOW + 10.3)

    def test_a_process_is_all_of_its_group_but_the_number(self) -> None:
        assert process_of(A) == process_of(replace(A, workers=9))
        assert process_of(A) == process_of(replace(A, history_retention=60.0, history_max=7))
        assert process_of(A) != process_of(replace(A, user="bifh1"))
