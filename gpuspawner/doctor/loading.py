"""Load a hub's configuration without starting a hub. A program of its own, since a configuration
is code: it may end the process, hang, print, or change the working folder.

    python -m gpuspawner.doctor.loading FILE RESULT

writes the result of `load` to RESULT, as JSON.
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

# The hub's address for a configuration whose network is missing: an address for documentation.
# ref: RFC 5737
NO_ADDRESS = "192.0.2.1"


def load(file: Path) -> dict[str, Any]:
    """Run a configuration and return what it sets, as a JSON value.

    Returns:
        {"error": {"kind", "message", "line" (None if unknown), "file"}}, or the result of
        `traits.describe` with "networks": the failures of `ensure_network`.
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
    """Return a variant of `ensure_network` that records its failures and doesn't raise.

    A missing network is created, as it would be at the hub's start.

    Args:
        real: `ensure_network`.
        networks: the list to which failures are added.
    """

    def ensure_network(name: str = "gpuspawner", address: str = "") -> str:
        try:
            found = real(name, address)
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
        # The line of the configuration itself from which the error came.
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
    """Load the file that the first argument names, and write the result to the second."""
    file, result = map(Path, sys.argv[1:])
    # `python -m` adds the working folder to the path, `jupyterhub` doesn't.
    sys.path.pop(0)
    result.write_text(json.dumps(load(file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
