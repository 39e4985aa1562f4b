"""JupyterHub for several GPU machines: jupyterhub_config.py, with servers on a Docker Swarm.

`make run NODES=3` runs it on simulated machines; docs/how-to/swarm.md says how to set real ones up.
"""

import os
from pathlib import Path

c = get_config()  # noqa: F821

# Who may log in, who may have how much, what a server is: all as on one machine.
load_subconfig(str(Path(__file__).with_name("jupyterhub_config.py")))  # noqa: F821
c.JupyterHub.spawner_class = "gpu-swarm"
c.GPUSwarmSpawner.merge(c.GPUSpawner)

# The hub is in a container on the network of its servers. This is its address for browsers; put a
# web server with TLS before it.
c.JupyterHub.bind_url = f"http://{os.environ.get('GPUSPAWNER_PUBLIC_IP', '')}:8000"
# A machine has the volumes of those who had servers on it. With a file server each has the same
# home everywhere: c.GPUSwarmSpawner.volume_driver.
# The hub doesn't see the machines' volumes, so it can't look for those of an earlier version.
c.GPUSwarmSpawner.earlier_home_volumes = {}
# The dashboard has neither the machines' GPUs nor their engines: the hub reads them for it.
for service in c.JupyterHub.services:
    service["command"].append("--from-hub")
