"""The image versions that users choose from."""

from .catalogue import load_catalogue

__all__ = ["load_catalogue"]
