"""How many connections a process of ours can have open."""

from __future__ import annotations

import resource

# More than any hub needs. A process that starts others may look through all that it could have.
ENOUGH = 65_536


def allow_many_connections() -> None:
    """Raise how many files and connections this process may have open, as far as it may.

    The usual limit of 1,024 is there for programs that use `select`. A user's server can have that
    many connections to the hub alone, and then nobody else would get one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
