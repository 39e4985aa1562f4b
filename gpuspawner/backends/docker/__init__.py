"""The Docker backend: servers are containers of one Docker Engine."""
