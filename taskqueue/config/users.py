"""Whether the users that a configuration names exist on this host: the part that asks the host."""

from __future__ import annotations

import pwd
from collections.abc import Callable

from taskqueue.config.options import DEFAULT
from taskqueue.config.values import Config, effective_user, service_user

__all__ = ["check_users", "user_exists"]


def user_exists(name: str) -> bool:
    """Whether this host has a user of that name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def check_users(config: Config, *, root: bool = True, exists: Callable[[str], bool] = user_exists) -> tuple[str, ...]:
    """A sentence for each user that `config` needs and this host does not have.

    root: whether the daemons run as root, so that the users count that are taken where none is named.
    """
    warnings = []

    def missing(section: str, option: str, user: str, *inherited: str) -> None:
        place = config.place(option, section, *inherited)
        warnings.append(f"{place}: [{section}] {option} = {user!r}: there is no such user on this host")

    if root and config.user and not exists(config.user):
        missing("taskqueue", "user", config.user)
    if root and not service_user(config, root=root, exists=exists):
        warnings.append(
            f"{config.path}: there is no user taskqueue on this host: "
            f"dispatcher and carrier run as root; expected user in [taskqueue]"
        )
    unnamed = [group for group in config.groups if not group.user and group.workers]
    if root and config.worker_user and not exists(config.worker_user):
        missing("taskqueue", "worker_user", config.worker_user)
    if unnamed and effective_user(unnamed[0], config, root=root, exists=exists) == "nobody" != config.worker_user:
        warnings.append(
            f"{config.path}: there is no user taskqueue-worker on this host: worker processes of groups without "
            f"a user run as nobody; expected worker_user in [taskqueue]"
        )
    for group in config.groups:
        if group.user and not exists(group.user):
            missing(group.name, "user", group.user, group.type, DEFAULT)
    return tuple(warnings)
