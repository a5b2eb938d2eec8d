"""Small sabotages, one for each promise at least: with one applied, the promise's own test must fail.

A sabotage is a module with

    TEST: the promise's own test, as pytest names it;
    apply(): replaces something in taskqueue, in the process that calls it.

`tests/test_sabotage.py` runs each TEST with TASKQUEUE_SABOTAGE set to the module's name: the test process applies it
(conftest.py), and so does every interpreter of the installation that the daemons run from (installations.py).
"""
