"""Several machines with GPUs: what a daemon on each of them tells, and the hub's reader of it."""
