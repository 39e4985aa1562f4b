"""`gpuspawner image`: list, build, check and pin the image versions of the catalogue."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
