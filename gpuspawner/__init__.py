"""A JupyterHub spawner for shared GPU machines."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"
__all__ = ["TEMPLATES", "GPUSpawner", "begin_with_hub", "ensure_network", "load_catalogue"]

# The names that configurations import from here -> their modules. Loaded on demand, since the
# command line needs none of them.
_PUBLIC = {
    "GPUSpawner": "gpuspawner.spawner",
    "TEMPLATES": "gpuspawner.pages",
    "begin_with_hub": "gpuspawner.hub.early",
    "ensure_network": "gpuspawner.network",
    "load_catalogue": "gpuspawner.images",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
