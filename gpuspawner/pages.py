"""Templates for JupyterHub's pages that show a user's servers, their start, or why it failed.

    c.JupyterHub.template_paths = [gpuspawner.pages.TEMPLATES]

Without that line JupyterHub's own templates are used, with the same sentences. Servers of other
spawners get JupyterHub's pages in any case.
"""

from __future__ import annotations

from pathlib import Path

TEMPLATES = str(Path(__file__).parent / "hub" / "templates")
