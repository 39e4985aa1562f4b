"""JupyterLab's settings in every image version. An administrator's `Spawner.args` come on top."""

import os

from gpuspawner_packages import SAFE_MODE, VERSION, folder

c = get_config()  # noqa: F821 - Jupyter defines it

# Servers on a closed network would wait for both, and updating the image isn't up to its user.
# ref: https://jupyterlab.readthedocs.io/en/stable/user/announcements.html
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"

# The list of what is installed stays, the search in a package index goes.
# `pip install` in a terminal works as ever.
c.LabApp.extension_manager = "readonly"

# What a package of the user's shows in a notebook, as those with widgets do, is fetched by the page
# from there. Nothing of it runs in the server.
if os.environ.get(SAFE_MODE) != "1":
    packages = folder() / os.environ.get(VERSION, "")
    c.LabServerApp.extra_labextensions_path = [
        str(packages / "share" / "jupyter" / "labextensions")
    ]
