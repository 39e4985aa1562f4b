"""`gpuspawner doctor`: what keeps this machine from handing out GPUs, and what to do about it."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
