"""`python -m bench`: the times of starts, the cost of open pages, the waiting times of a queue.

`python -m bench starts`, `handover`, `pages`, `load`, `class`, `costs`, `queue`, `planner`, `usage`
and `cluster` are one of them, with options (`--help`).
"""

from __future__ import annotations

import sys

from . import cluster, costs, handover, lesson, load, pages, planner, queue, starts, usage


def main() -> int:
    """Run the benchmarks that the arguments name, or all; return the exit status."""
    name, options = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    parts = {
        "starts": starts.main,
        "handover": handover.main,
        "pages": pages.main,
        "load": load.main,
        "class": lesson.main,
        "costs": costs.main,
        "queue": queue.main,
        "planner": planner.main,
        "usage": usage.main,
        "cluster": cluster.main,
    }
    if name in parts:
        return parts[name](options)
    others = (
        handover.main,
        pages.main,
        load.main,
        lesson.main,
        costs.main,
        queue.main,
        planner.main,
        usage.main,
        cluster.main,
    )
    return starts.main(sys.argv[1:]) or next(filter(None, (main([]) for main in others)), 0)


if __name__ == "__main__":
    sys.exit(main())
