"""Promise 4 broken: a carrier does not hear that a handler may have ended its workitem, and takes it for lost."""

from __future__ import annotations

from taskqueue import loop

FAILS = ("test_system_completing.py::test_what_was_completed_is_as_what_has_ended[sqlite]",)

end = loop.Loop.end
loop.Loop.end = lambda self, ended: end(self, ended._replace(completing=False))
