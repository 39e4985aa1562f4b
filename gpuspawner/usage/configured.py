"""Where a configuration has the store. A program of its own, since a configuration is code.

    python -m gpuspawner.usage.configured FILE RESULT

writes `usage_db` to RESULT, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from traitlets.config import PyFileConfigLoader

from ..settings import GPUTraits

# From the most special class on, as traitlets looks for it.
SECTIONS = ("GPUSpawner", "BaseGPUSpawner", "GPUTraits", "DockerSpawner", "Spawner")


def main() -> int:
    """Load the file that the first argument names, and write the result to the second."""
    file, result = map(Path, sys.argv[1:])
    # `python -m` adds the working folder to the path, `jupyterhub` doesn't.
    sys.path.pop(0)
    config = PyFileConfigLoader(str(file)).load_config()
    found = [config[each]["usage_db"] for each in SECTIONS if "usage_db" in config.get(each, {})]
    url = found[0] if found else GPUTraits.usage_db.default_value
    result.write_text(json.dumps(str(url)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
