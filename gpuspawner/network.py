"""The servers' network, by the name that configurations import it by."""

from .backends.docker.network import ensure_network

__all__ = ["ensure_network"]
