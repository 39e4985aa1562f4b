"""The limit of open connections of the hub and the dashboard."""

from __future__ import annotations

import resource

# More than any hub needs. Not unlimited, as some programs close every possible descriptor first.
ENOUGH = 65_536


def allow_many_connections() -> None:
    """Raise this process's limit of open files and connections, at most to its hard limit.

    The usual soft limit of 1,024 is for programs that use `select`. A single user's server can open
    that many connections to the hub, which would then accept no others. ref: getrlimit(2)
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
