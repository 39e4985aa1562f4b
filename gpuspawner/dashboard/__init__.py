"""The dashboard, a service of the hub that shows GPUs, their holders and the queue.

It reads NVML and the engine itself, shares no memory with the hub, and reads the queue through the
control socket (`hub.control_socket`). It has no rights of its own on the hub: it acts with the
token of the user who asks. With `--from-hub` it has neither NVML nor the engine, and reads the
nodes through that socket, too.

    monitor      reads the nodes and the hub, once for all pages; history keeps the last minutes
    facts        what one user may see, for the JSON API and the pages
    actions      extend, stop, out of service: who may do it, and how
    handlers     HTTP handlers; pages: HTML
"""
