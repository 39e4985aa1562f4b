"""Backends, which start servers and keep their labels, and the start of a server on any of them."""
