"""A JupyterHub spawner for shared GPU machines."""

__version__ = "0.1.0.dev0"
