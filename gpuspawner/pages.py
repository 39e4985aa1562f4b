"""JupyterHub's own pages in our words: what happens while a server starts, and why it didn't.

    c.JupyterHub.template_paths = [gpuspawner.pages.TEMPLATES]

Without that line JupyterHub's own pages do, with the same sentences. They stay in place for servers
of other spawners, too.
"""

from __future__ import annotations

from pathlib import Path

TEMPLATES = str(Path(__file__).parent / "hub" / "templates")
