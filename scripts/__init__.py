"""The commands of the Makefile: install, run, test, and renew locks and catalogues.

Only the standard library is imported, since these run before anything is installed.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # that is what it is here to say
    sys.exit(
        f"gpuspawner: this is Python {sys.version_info[0]}.{sys.version_info[1]}, and 3.10 or "
        "newer is needed: name one, as in `make run PYTHON=python3.12`"
    )
