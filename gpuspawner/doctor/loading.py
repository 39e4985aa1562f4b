"""Read a hub's configuration without starting a hub. Run as a program of its own, for what is in
a configuration runs: it may end the process, wait for ever, print, or change folders.

    python -m gpuspawner.doctor.loading FILE RESULT

writes to RESULT what `load` returns, as JSON.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from traitlets.config import Config, PyFileConfigLoader

from ..backends.docker import network
from .traits import describe

# What a configuration gets for the hub's address while there is no network: nobody's address.
# ref: RFC 5737
NO_ADDRESS = "192.0.2.1"


def load(file: Path) -> dict[str, Any]:
    """Run a configuration and return what it sets, in values that JSON has.

    Either "error" with "kind", "message", "line" (None where it isn't known) and "file", or what
    `traits.describe` returns, with "networks": what calls of `ensure_network` led to.
    """
    networks: list[dict[str, str]] = []
    real = network.ensure_network
    network.ensure_network = _watched(real, networks)  # type: ignore[assignment]
    try:
        config = PyFileConfigLoader(str(file)).load_config()
        if not isinstance(config, Config):
            raise TypeError("it replaces c by something else")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too
        return {"error": _described(error, file)}
    finally:
        network.ensure_network = real
    return {**describe(config), "networks": networks}


def _watched(real: Any, networks: list[dict[str, str]]) -> Any:
    """Return `ensure_network` that notes its failure: what comes after it can be read all the same.

    A network that is missing is made, as it would be at the hub's start.
    """

    def ensure_network(name: str = "gpuspawner") -> str:
        try:
            found = real(name)
        except network.NetworkError as error:
            networks.append({"name": name, "error": error.words, "advice": error.advice})
            return NO_ADDRESS
        networks.append({"name": name, "error": "", "advice": ""})
        return str(found)

    return ensure_network


def _described(error: BaseException, file: Path) -> dict[str, Any]:
    line: int | None = None
    where = str(file)
    if isinstance(error, SyntaxError):
        line, where = error.lineno, error.filename or where
        message = error.msg
    else:
        # The last line of the configuration itself that led to it.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = frames[-1].lineno if frames else None
        message = " ".join(str(error).split())
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return {
        "kind": type(error).__name__,
        "message": message[:500],
        "line": line,
        "file": where,
        "missing_module": missing,
    }


def main() -> int:
    """Read the file that the first argument names, and write to the second."""
    file, result = map(Path, sys.argv[1:])
    # `-m` puts the working folder there, and `jupyterhub` doesn't.
    sys.path.pop(0)
    result.write_text(json.dumps(load(file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
