"""What all spawners of a hub share, and what the hub shows: pages, metrics, errors, a socket."""
