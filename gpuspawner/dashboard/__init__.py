"""The dashboard, a service that the hub starts: who has which GPU, who waits, and until when.

It reads NVML and the engine by itself, shares no memory with the hub, and asks it through its
socket (`gpuspawner.control`) who waits. It has no rights of its own on the hub: what it does there,
it does with the token of who asked for it.

    monitor      the host and the hub, read once for all pages  (history: what was before)
    facts        what one person may know of it, as the JSON API and the pages have it
    actions      more time, stop, out of service: who may, and how
    handlers     HTTP; pages: HTML
"""
