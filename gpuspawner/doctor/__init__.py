"""`gpuspawner doctor`: checks of a machine and a hub's configuration, with advice."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
