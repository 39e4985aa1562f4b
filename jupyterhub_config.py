"""JupyterHub for one GPU machine. Copy this file, and change what doesn't suit you.

JupyterHub writes its database and secrets into the folder that it is started in.
"""

import os
import secrets
import sys
from pathlib import Path

from tornado.httpserver import HTTPServer

from gpuspawner.images import load_catalogue
from gpuspawner.network import ensure_network
from gpuspawner.pages import TEMPLATES

c = get_config()  # noqa: F821

# ---- Who may log in ------------------------------------------------------------------------------
# For a demonstration: everybody with the password, under any name. Before real people come, replace
# these lines by your own log-in; docs/how-to/log-in.md has the lines for PAM, accounts of the hub's
# own, OAuth and LTI.


def kept_secret(name: str, length: int) -> str:
    """Return the secret in a file of the working folder, made at the first start."""
    file = Path(name)
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(length))
    return file.read_text().strip()


c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = kept_secret("user-password", 9)
c.SharedPasswordAuthenticator.admin_password = kept_secret("admin-password", 27)
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"admin"}
# What a name may be. JupyterHub writes names into its log as they are, and by itself takes any: one
# with a line break would write lines that others take for the hub's.
c.Authenticator.username_pattern = r"[\w.@+-]{1,64}\Z"
# Members of this group write the course material (see `course_volumes`).
c.JupyterHub.load_groups = {"instructors": {"users": ["admin"]}}

# ---- Where it is ---------------------------------------------------------------------------------
# Reachable from this machine only. Put a web server with TLS before it (JupyterHub's documentation
# has the lines for nginx and Apache), or set `c.JupyterHub.ssl_cert` and `ssl_key`.
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
# A network of the servers' own: they reach the hub and the outside, and not each other. The hub
# listens for them on that network's address; no server's port is published on the host.
c.JupyterHub.hub_ip = ensure_network("gpuspawner")
c.GPUSpawner.network_name = "gpuspawner"

# ---- How much anybody can ask for ----------------------------------------------------------------
# Of what is sent to the hub it reads this much, and no connection is kept that asks for nothing.
# Users' servers reach it past the proxy. Sizes are in bytes, times in seconds.
HTTPServer.configure(None, max_body_size=256 * 1024, body_timeout=60, idle_connection_timeout=120)
# Servers at a time, those without GPUs too. Each may take its memory limit and more of the disk:
# docs/how-to/limits.md has the lines that stop idle servers, and docs/how-to/files.md disk quotas.
c.JupyterHub.active_server_limit = 100

# ---- What a server is ----------------------------------------------------------------------------
c.JupyterHub.spawner_class = "gpu"
# The image versions that users choose from; `gpuspawner image build` builds them. Instead of the
# file you can write {"my-version": {"title": "…", "image": "registry/name:tag"}}.
c.GPUSpawner.images = load_catalogue(Path(__file__).parent / "image" / "catalogue.yaml")
# These images are built here, so one that is missing is not to be looked for in a registry, where
# anybody may have taken its name. With images of a registry: "ifnotpresent".
c.GPUSpawner.pull_policy = "never"
# GPUs of one server: at most, and for those who don't say. Groups can have more, as in
# c.Spawner.group_overrides = {"lab": {"groups": ["lab"], "spawner_override": {"gpu_limit": 4}}}
c.GPUSpawner.gpu_limit = 2
c.GPUSpawner.default_gpus = 1
# How long they are kept, in hours: at most, and for those who don't say. Ends are what tells those
# who wait when their turn comes. None: for ever.
c.GPUSpawner.hour_limit = 12
c.GPUSpawner.default_hours = 4
# Where all GPUs are taken people wait in a queue. For JupyterHub they are spawns under way, of
# which it would let only 100 be at a time; the queue's limit is c.GPUSpawner.queue_length.
c.JupyterHub.concurrent_spawn_limit = 0
# A browser sees the progress page, and with it the queue, after two seconds.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 2}
# The home page, the progress page and the one that says why a server didn't start, in our words.
c.JupyterHub.template_paths = [TEMPLATES]
# Our images take SSH there; the home page has each user's own lines for it.
c.GPUSpawner.ssh_path = "sshd"
# Memory of one server, /dev/shm included, and how much of it /dev/shm may take.
c.GPUSpawner.mem_limit = "16G"
c.GPUSpawner.shm_size = "8G"
c.GPUSpawner.extra_host_config = {
    # No program in a server can gain rights that it didn't start with, and it starts with none.
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    # Stops a fork bomb; JupyterLab with a few DataLoaders takes some hundred.
    "pids_limit": 4096,
}

# ---- What is kept --------------------------------------------------------------------------------
# Each user's own volume: kept when the server stops, and when the user picks another image version.
# It is the whole home: what lies elsewhere in a server is gone when it stops.
c.GPUSpawner.home_volume = "gpuspawner-jovyan-{username}"
c.GPUSpawner.home_path = "/home/jovyan"
c.GPUSpawner.notebook_dir = "/home/jovyan"
# An earlier version of this configuration kept ~/work only: who has such a volume finds it there.
c.GPUSpawner.earlier_home_volumes = {"gpuspawner-home-{username}": "/home/jovyan/work"}
# A volume that everybody reads and instructors write.
c.GPUSpawner.course_volumes = {
    "gpuspawner-course": {"path": "/home/jovyan/course", "instructors": ["instructors"]},
}

# A course: its students, their limits, its material; docs/how-to/courses.md has more, such as
# reserved hours in which 4 GPUs with 15 slots each seat a class of 60.
# Change it, take the comment signs away, and put its people into its groups.
# c.GPUSpawner.courses = {
#     "ml-101": {
#         "title": "Machine learning",
#         "group": ["ml-101"],
#         "instructors": ["instructors"],
#         "limits": {"gpus_per_student": 1, "hours": 4},
#         "material": {"volume": "gpuspawner-ml-101", "path": "/home/jovyan/ml-101"},
#     },
# }

# ---- The dashboard -------------------------------------------------------------------------------
# Who has which GPU and who waits, at /services/gpus/ and in the menu "Services"; with a JSON API.
c.JupyterHub.services = [
    {
        "name": "gpus",
        # Where it listens: for the proxy, and for programs in the servers.
        "url": f"http://{c.JupyterHub.hub_ip}:8710",
        # With "--names", "everybody" all read whose GPUs are whose; without, administrators do.
        "command": [sys.executable, "-m", "gpuspawner", "dashboard"],
        # The Docker Engine and the host's GPUs, where they aren't in the usual place: JupyterHub
        # passes on little of its environment.
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("DOCKER_", "GPUSPAWNER_"))
        },
        # It may do nothing on the hub by itself. What it does is done as who asked for it, and all
        # that it may do so is to stop servers: users their own, administrators everybody's. The
        # second lets it ask the hub which courses they teach.
        "oauth_client_allowed_scopes": ["delete:servers", "read:users:groups"],
        # It is a part of the hub, so nobody is asked whether it may know who they are.
        "oauth_no_confirm": True,
    }
]
c.JupyterHub.load_roles = [
    # "self" is what JupyterHub gives every user; the other lets them open the dashboard.
    {"name": "user", "scopes": ["self", "access:services!service=gpus"]},
    # The first two are what JupyterHub gives every server. With the third, programs in a server can
    # ask the dashboard how much time is left, and for more. It makes nobody an administrator.
    {
        "name": "server",
        "scopes": [
            "users:activity!user",
            "access:servers!server",
            "access:services!service=gpus",
        ],
    },
]
# The same for JupyterLab's page, as who looks at it: its status bar says how much time is left.
c.GPUSpawner.oauth_client_allowed_scopes = ["access:services!service=gpus"]
# Where those programs find it; what they show there is their JUPYTERHUB_API_TOKEN.
c.GPUSpawner.environment = {
    "GPUSPAWNER_API_URL": f"http://{c.JupyterHub.hub_ip}:8710/services/gpus/api"
}
