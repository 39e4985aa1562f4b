"""The public import path of `ensure_network`."""

from .backends.docker.network import ensure_network

__all__ = ["ensure_network"]
