"""JupyterLab's settings of every image version. An administrator's `Spawner.args` come on top."""

c = get_config()  # noqa: F821 - Jupyter defines it

# Servers on a closed network would wait for both, and the image's versions are not the user's to update.
# ref: https://jupyterlab.readthedocs.io/en/stable/user/announcements.html
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.handlers.announcements.NeverCheckForUpdate"

# What is installed is listed; the search in the package index is off (`pip install` in a terminal works as ever).
c.LabApp.extension_manager = "readonly"
