"""The service of a server, made from the arguments that its container would be created with.

So what an administrator sets for containers holds for services: limits, volumes, environment, log
driver, capabilities. What a service can't carry is refused by name, and nothing of it is left out.
Pure functions on the arguments of docker-py's `create_container`, and on the engine's own JSON.

ref: https://docs.docker.com/reference/api/engine/version/v1.44/#tag/Service/operation/ServiceCreate
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..docker.container_config import with_gpu_variables

# Seconds for what a server itself does at its end, after those that it has to save.
LAST_SECONDS = 2
NANO = 10**9
# What a service without GPUs is placed by as well: its volumes are on one node.
NODE_CONSTRAINT = "node.id=="

Spec = dict[str, Any]
# In options of a driver: the name of the volume that it makes.
VOLUME = "{volume}"


class NotForServices(ValueError):
    """What is set for servers can't be carried by a service. `str()` says what, for administrators.

    Args:
        words: what, and why.
        setting: the trait's name.
    """

    def __init__(self, words: str, setting: str) -> None:
        super().__init__(words)
        self.setting = setting


# Arguments of a container that say nothing of a service: its volumes are mounts, its ports are
# open on its network, and the hub gives it its name and labels.
_NOTHING = frozenset({"name", "volumes", "ports", "labels", "environment", "host_config"})
# Those that a service has under another name.
_CONTAINER = {
    "image": "Image",
    "command": "Args",
    "entrypoint": "Command",
    "user": "User",
    "working_dir": "Dir",
    "hostname": "Hostname",
    "tty": "TTY",
    "stdin_open": "OpenStdin",
    "stop_signal": "StopSignal",
}
# The same of the host config, in the API's own form.
_HOST = {
    "CapAdd": "CapabilityAdd",
    "CapDrop": "CapabilityDrop",
    "ExtraHosts": "Hosts",
    "GroupAdd": "Groups",
    "Init": "Init",
    "ReadonlyRootfs": "ReadOnly",
    "Sysctls": "Sysctls",
    "Ulimits": "Ulimits",
}
# Of the host config, in a function of their own, or as the hub sees to it: it removes services.
_TRANSLATED = frozenset(
    {
        *("AutoRemove", "Binds", "CpuPeriod", "CpuQuota", "Dns", "DnsOptions", "DnsSearch"),
        *("LogConfig", "Memory", "MemoryReservation", "Mounts", "NanoCpus", "NetworkMode"),
        *("PidsLimit", "SecurityOpt", "ShmSize", "Tmpfs"),
    }
)
# Why one of the most usual ones can't be.
_REASONS = {
    "DeviceRequests": "leases give the GPUs",
    "Devices": "Swarm has no devices",
    "Links": "Swarm has no links",
    "PortBindings": "a server is reached on its network",
    "Privileged": "Swarm runs nothing with all rights",
    "RestartPolicy": "a server that has ended is started anew by its user",
    "Runtime": "each node has its default runtime",
}


def service_spec(
    create: Mapping[str, Any],
    *,
    name: str,
    labels: Mapping[str, str],
    uuids: Sequence[str],
    kinds: Mapping[str, int],
    node_id: str,
    network: str,
    shm_size: int | None = None,
    ulimits: Mapping[str, int] | None = None,
    stop_seconds: float = 10.0,
    volume_driver: str = "",
    volume_options: Mapping[str, str] | None = None,
) -> Spec:
    """Return the service of a lease, which isn't to have a task yet.

    Args:
        create: the arguments of a container, for `APIClient.create_container`.
        name: the service's name.
        labels: the labels of the lease. The service and its container have them: a container may
            outlast its service for a while.
        uuids: the UUIDs of its GPUs; may be empty.
        kinds: kind -> how many of it are reserved.
        node_id: Swarm's id of its node.
        network: the name or id of the overlay network of servers and hub.
        shm_size: the size of /dev/shm in bytes, unless the host config has one.
        ulimits: name -> value (-1: unlimited), unless the host config has them.
        stop_seconds: how many seconds it has to save.
        volume_driver, volume_options: of its volumes; "": the engine's own. `VOLUME` in an option
            is the volume's name.

    Raises:
        NotForServices: the arguments have something that a service can't carry.
    """
    host = dict(create.get("host_config") or {})
    _refuse(create, host)
    container = _container(create, host, uuids, ulimits or {})
    mounts = [*_mounts(host, volume_driver, volume_options or {}), _shm(host, shm_size)]
    container["Labels"] = {**_labels(create.get("labels")), **labels}
    container["Mounts"] = [each for each in mounts if each]
    container["StopGracePeriod"] = round((stop_seconds + LAST_SECONDS) * NANO)
    template: Spec = {
        "ContainerSpec": container,
        "Resources": _resources(host, kinds),
        "RestartPolicy": {"Condition": "none", "MaxAttempts": 0},
        "Placement": {"Constraints": [f"{NODE_CONSTRAINT}{node_id}"]},
        "Networks": [{"Target": network}],
    }
    if log := host.get("LogConfig"):
        template["LogDriver"] = {"Name": log.get("Type"), "Options": dict(log.get("Config") or {})}
    return {
        "Name": name,
        "Labels": dict(labels),
        "TaskTemplate": template,
        "Mode": {"Replicated": {"Replicas": 0}},
        # A virtual IP drops connections that are idle for 15 minutes, as a notebook's are.
        # ref: https://github.com/moby/moby/issues/31208
        "EndpointSpec": {"Mode": "dnsrr"},
    }


def _container(
    create: Mapping[str, Any],
    host: Mapping[str, Any],
    uuids: Sequence[str],
    ulimits: Mapping[str, int],
) -> Spec:
    """Return what the arguments of a container say of the containers of a service."""
    environment = with_gpu_variables(create.get("environment"), uuids)
    container: Spec = {
        # Swarm calls a task running once its image's health check has passed, a minute later with
        # ours, and ends one whose check fails, with its user's work. The hub asks servers itself.
        # ref: https://docs.docker.com/reference/compose-file/services/#healthcheck
        "HealthCheck": {"Test": ["NONE"]},
        "Env": [key if value is None else f"{key}={value}" for key, value in environment.items()],
        **_named(create, _CONTAINER),
        **_named(host, _HOST),
        **_dns(host),
        **_privileges(host),
    }
    for key in ("Args", "Command"):
        if isinstance(container.get(key), str):
            container[key] = [container[key]]
    if hosts := container.get("Hosts"):
        container["Hosts"] = _hosts(hosts)
    limits = list(container.get("Ulimits") or [])
    named = {limit.get("Name") for limit in limits}
    container["Ulimits"] = limits + [
        {"Name": key, "Soft": value, "Hard": value}
        for key, value in ulimits.items()
        if key not in named
    ]
    return container


def _refuse(create: Mapping[str, Any], host: Mapping[str, Any]) -> None:
    known = _NOTHING | _CONTAINER.keys()
    for key, value in create.items():
        if key not in known and value not in (None, False, "", [], {}):
            raise NotForServices(f"a Swarm service can't have {key}", "extra_create_kwargs")
    for key, value in host.items():
        if key in _HOST or key in _TRANSLATED or value in (None, False, "", 0, [], {}):
            continue
        words = f"a Swarm service can't have {key}"
        setting = "links" if key == "Links" else "extra_host_config"
        if key == "PortBindings":
            setting = "use_internal_ip"
        reason = _REASONS.get(key)
        raise NotForServices(f"{words}: {reason}" if reason else words, setting)


def _named(found: Mapping[str, Any], names: Mapping[str, str]) -> Spec:
    return {theirs: found[ours] for ours, theirs in names.items() if found.get(ours) is not None}


def _labels(found: Any) -> dict[str, str]:
    return dict.fromkeys(found, "") if isinstance(found, list | tuple) else dict(found or {})


def _hosts(hosts: Any) -> list[str]:
    """Return a container's "name:address" as a service's "address name"."""
    pairs = (str(each).partition(":") for each in hosts)
    return [f"{address} {name}" for name, _, address in pairs]


def _dns(host: Mapping[str, Any]) -> Spec:
    names = {"Dns": "Nameservers", "DnsSearch": "Search", "DnsOptions": "Options"}
    found = {theirs: list(host[ours]) for ours, theirs in names.items() if host.get(ours)}
    return {"DNSConfig": found} if found else {}


def _privileges(host: Mapping[str, Any]) -> Spec:
    """Return the security options that a service has: it may gain no rights.

    Raises:
        NotForServices: it is another one.
    """
    found: Spec = {}
    for option in host.get("SecurityOpt") or []:
        name, _, value = str(option).replace("=", ":", 1).partition(":")
        if name == "no-new-privileges" and value in ("", "true"):
            found["NoNewPrivileges"] = True
        else:
            raise NotForServices(
                f"a Swarm service can't have security_opt {str(option)!r}, only no-new-privileges",
                "extra_host_config",
            )
    return {"Privileges": found} if found else {}


def _mounts(host: Mapping[str, Any], driver: str, options: Mapping[str, str]) -> list[Spec]:
    mounts = []
    for bind in host.get("Binds") or []:
        source, target, modes = (*str(bind).split(":"), "")[:3]
        is_folder = source.startswith("/")
        mount: Spec = {
            "Type": "bind" if is_folder else "volume",
            "Source": source,
            "Target": target,
            "ReadOnly": "ro" in modes.split(","),
        }
        if driver and not is_folder:
            own = {name: value.replace(VOLUME, source) for name, value in options.items()}
            mount["VolumeOptions"] = {"DriverConfig": {"Name": driver, "Options": own}}
        mounts.append(mount)
    mounts += [dict(each) for each in host.get("Mounts") or []]
    for target in host.get("Tmpfs") or {}:
        mounts.append({"Type": "tmpfs", "Target": target})
    return mounts


def _shm(host: Mapping[str, Any], size: int | None) -> Spec:
    size = host.get("ShmSize") or size
    if not size:
        return {}
    options = {"SizeBytes": size, "Mode": 0o1777}
    return {"Type": "tmpfs", "Target": "/dev/shm", "TmpfsOptions": options}  # noqa: S108


def _resources(host: Mapping[str, Any], kinds: Mapping[str, int]) -> Spec:
    limits: Spec = {}
    if host.get("NanoCpus"):
        limits["NanoCPUs"] = host["NanoCpus"]
    elif host.get("CpuQuota"):
        limits["NanoCPUs"] = round(host["CpuQuota"] / (host.get("CpuPeriod") or 100_000) * NANO)
    if host.get("Memory"):
        limits["MemoryBytes"] = host["Memory"]
    if (host.get("PidsLimit") or 0) > 0:
        limits["Pids"] = host["PidsLimit"]
    reserved: Spec = {}
    if kinds:
        reserved["GenericResources"] = [
            {"DiscreteResourceSpec": {"Kind": kind, "Value": number}}
            for kind, number in sorted(kinds.items())
        ]
    if host.get("MemoryReservation"):
        reserved["MemoryBytes"] = host["MemoryReservation"]
    return {"Limits": limits, "Reservations": reserved}


def started(service: Mapping[str, Any]) -> Spec:
    """Return the specification of a service that is to have its task."""
    return {**service["Spec"], "Mode": {"Replicated": {"Replicas": 1}}}


def labelled(service: Mapping[str, Any], label: str, value: str) -> Spec:
    """Return the specification of a service with one more label; its task goes on."""
    spec: Mapping[str, Any] = service["Spec"]
    return {**spec, "Labels": {**(spec.get("Labels") or {}), label: value}}
