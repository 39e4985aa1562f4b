"""`python -m bench`: how long starts take, and how long a queue's people wait.

`python -m bench starts` and `python -m bench queue` are one of them, with options (`--help`).
"""

from __future__ import annotations

import sys

from . import queue, starts


def main() -> int:
    """Measure what the arguments name, or all; return the exit status."""
    name, options = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if name == "starts":
        return starts.main(options)
    if name == "queue":
        return queue.main(options)
    return starts.main(sys.argv[1:]) or queue.main([])


if __name__ == "__main__":
    sys.exit(main())
