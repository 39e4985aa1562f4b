"""What a configuration needs where hub, proxy and dashboard are containers of their own.

`compose.yaml` starts a hub with this file. It loads the configuration beside it, which is written
as for a hub on the machine itself, and sets what a container has in another way.
"""

import os
import subprocess
from pathlib import Path

from gpuspawner import ensure_network

c = get_config()  # noqa: F821

# The database and the secrets are the hub's alone.
os.umask(0o077)


def secret_of(volume: str) -> str:
    """Return the secret in a volume that the hub shares with one other container."""
    words = ["with-secret", "SECRET", f"{volume}/token", "printenv", "SECRET"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


# This machine's address on the servers' network, which the dashboard has to know beforehand. The
# network is made with it, and `ensure_network` of the configuration finds it.
ensure_network("gpuspawner", address=os.environ["GPUSPAWNER_ADDRESS"])

load_subconfig(str(Path(__file__).with_name("jupyterhub_config.py")))  # noqa: F821

# The proxy is another container, so users' servers are reached while the hub is made anew.
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.auth_token = secret_of("/srv/proxy-token")
# Servers go on when the hub's container ends, and the next one finds them.
c.JupyterHub.cleanup_servers = False
# What the dashboard asks for the GPUs and the queue, in a volume that the two share.
c.GPUSpawner.control_socket = "/srv/control/hub.sock"
# The dashboard isn't started by the hub either, and shows by a token that it is the dashboard.
services = c.JupyterHub.services
if not isinstance(
    services, list
):  # the configuration adds to JupyterHub's own, of which it has none
    services = c.JupyterHub.services = services.get_value([])
for service in services:
    if service["name"] == "gpus":
        service.pop("command", None)
        service.pop("environment", None)
        service["api_token"] = secret_of("/srv/dashboard-token")
