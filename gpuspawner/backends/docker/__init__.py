"""Servers as containers of one Docker Engine."""
