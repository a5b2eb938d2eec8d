"""Promise 9: worker processes keep the supplementary groups of the manager."""

TEST = "tests/test_system_privileges.py::test_a_worker_process_has_the_rights_of_its_user_and_no_others"


def apply() -> None:
    import subprocess

    from taskqueue.process import spawn

    class Careless(subprocess.Popen):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, **{**keywords, "extra_groups": None})

    spawn.subprocess.Popen = Careless
