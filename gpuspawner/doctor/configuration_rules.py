"""The rules for configurations, each of which finds one kind of mistake or danger.

A rule takes the configuration and this machine's GPUs (None: it has no driver), and yields its
findings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends.docker.container_config import VISIBLE_DEVICES
from ..backends.docker.device_requests import asks_for_gpus, names_beyond, refuse_device_files
from ..backends.docker.volumes import UNESCAPED
from ..gpus.allocation import kind_shares
from ..gpus.missing_driver import own_container_id
from ..gpus.model import GPU, WHOLE
from ..gpus.units import sharing_problems, split
from ..group_overrides import NOTHING
from ..notifications.notifier import problems
from .findings import NAME, Configuration, Finding

# Folders of the host whose owner is as good as root there.
DANGEROUS_FOLDERS: tuple[str, ...] = (
    "/",
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/var/lib",
)
DANGEROUS_FOLDERS += ("/var/run", "/var/lib/docker", "/var")
DANGEROUS_CAPABILITIES = (
    "ALL",
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_MODULE",
    "SYS_RAWIO",
    "DAC_READ_SEARCH",
)
FEW_STARTS = 5
# (default, its limit)
DEFAULTS = (
    ("default_gpus", "gpu_limit"),
    ("default_gpus", "user_gpu_limit"),
    ("default_hours", "hour_limit"),
    ("cpu_guarantee", "cpu_limit"),
    ("mem_guarantee", "mem_limit"),
)
# Variables that make Jupyter's images change their user, and the capabilities that this needs.
# ref: start.sh in jupyter/docker-stacks
AS_ROOT = ("NB_UID", "NB_GID", "NB_USER", "CHOWN_HOME", "CHOWN_EXTRA", "GRANT_SUDO")
ROOT_NEEDS = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
GIB = 1024**3


def host_config(given: Configuration) -> Mapping[str, Any]:
    """Return `extra_host_config`; empty where it is a function."""
    extra = given.spawner.get("extra_host_config") or {}
    return {} if _is_function(extra) else extra


def _is_function(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"function"}


def unread_functions(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Traits that are functions: their results aren't known before a start."""
    for name in ("extra_host_config", "extra_create_kwargs", "group_overrides"):
        if _is_function(given.spawner.get(name)):
            yield Finding(
                "note", f"{given.where(name)} is a function: what it returns isn't seen here"
            )
        elif name in given.called:
            what = f"{given.where(name)} is a function: looked at is what it returns for {NAME!r}"
            yield Finding("note", f"{what}, who is in no group")


def unescaped_names(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """`{raw_username}` in a volume or a folder: a user named "../x" would leave theirs."""
    places = {name: given.spawner.get(name) for name in ("volumes", "read_only_volumes", "mounts")}
    places["extra_host_config"] = host_config(given).get("binds")
    for name, value in places.items():
        for word in UNESCAPED:
            if any(f"{{{word}}}" in text for text in texts(value)):
                safe = word.removeprefix("raw_")
                found = (
                    f"{given.where(name)}: {{{word}}} isn't escaped, and a user named '../x' "
                    "would leave their folder"
                )
                yield Finding("failure", found, f"write {{{safe}}} instead of {{{word}}}")


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a value, however deep, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)


def privileges(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Rights that make a user root on the host, or show them every GPU."""
    extra, where = host_config(given), given.where("extra_host_config")
    create = given.spawner.get("extra_create_kwargs") or {}
    for name, config in (("extra_host_config", extra), ("extra_create_kwargs", create)):
        if not _is_function(config) and config.get("privileged"):
            what = f"{given.where(name)}: privileged servers see every GPU and are root on the host"
            yield Finding("failure", what, 'remove "privileged"')
    added = [str(word).upper().removeprefix("CAP_") for word in extra.get("cap_add") or []]
    for word in added:
        if word in DANGEROUS_CAPABILITIES:
            yield Finding(
                "failure", f"{where}: cap_add {word} leads out of the container", f"remove {word}"
            )
    for option in extra.get("security_opt") or []:
        if "unconfined" in str(option):
            yield Finding("warning", f"{where}: {option} takes a fence away", f"remove {option!r}")
    for name in ("pid_mode", "ipc_mode", "userns_mode", "uts_mode"):
        if extra.get(name) == "host":
            what = f"{where}: {name} host shares the host's own with every user"
            yield Finding("failure" if name == "pid_mode" else "warning", what, f'remove "{name}"')


def missing_fences(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Missing restrictions: a server could gain rights, or use up the host's processes."""
    if _is_function(given.spawner.get("extra_host_config")):
        return
    extra, where = host_config(given), given.where("extra_host_config")
    missing, parts = [], []
    if not any("no-new-privileges" in str(each) for each in extra.get("security_opt") or []):
        missing.append("no-new-privileges")
        parts.append('"security_opt": ["no-new-privileges"]')
    if "ALL" not in [str(word).upper() for word in extra.get("cap_drop") or []]:
        missing.append("cap_drop ALL")
        parts.append('"cap_drop": ["ALL"]')
    if not extra.get("pids_limit"):
        parts.append('"pids_limit": 4096')
    line = f"c.GPUSpawner.extra_host_config = {{{', '.join(parts)}}}"
    if given.sets("extra_host_config"):  # another line would take what is there away
        line = f"add to it: {', '.join(parts)}"
    if missing:
        what = f"{where}: without {' and '.join(missing)} a program in a server can gain rights"
        yield Finding("warning", what, line)
    if not extra.get("pids_limit"):
        yield Finding(
            "note", f"{where}: without pids_limit one user's fork bomb stops the host", line
        )


def memory(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A missing memory limit, or one that is smaller than /dev/shm."""
    limit, shm = given.spawner.get("mem_limit"), given.spawner.get("shm_size") or 0
    if _is_function(limit):
        return
    if not limit:
        what = "no mem_limit: one server can take all of the host's memory, and the hub's with it"
        yield Finding("warning", what, 'c.GPUSpawner.mem_limit = "16G"')
    elif isinstance(limit, int) and limit < shm:
        what = (
            f"{given.where('mem_limit')} is {limit / GIB:.1f} GiB and shm_size {shm / GIB:.1f}: "
            "who fills /dev/shm is killed"
        )
        yield Finding("warning", what, 'c.GPUSpawner.shm_size = "…" (less than mem_limit)')


def kept_containers(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """`remove = False`: files outside of volumes are kept, and fill the disk."""
    if given.spawner.get("remove") is False:
        what = f"{given.where('remove')} is False: stopped containers stay, and take disk space"
        yield Finding("note", what, "see them: docker ps --all --filter label=gpuspawner.gpus")


def ports(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Ports at which servers can be reached without the proxy, and so without a log-in."""
    extra, where = host_config(given), given.where("extra_host_config")
    if extra.get("port_bindings") or extra.get("publish_all_ports"):
        name = "port_bindings" if extra.get("port_bindings") else "publish_all_ports"
        what = f"{where}: {name} publishes ports of every server on the host"
        yield Finding("warning", what, f'remove "{name}": users come through the hub\'s proxy')
    mode, network = extra.get("network_mode"), given.spawner.get("network_name")
    if "host" in (mode, network):
        setting = where if mode == "host" else given.where("network_name")
        what = f"{setting}: servers in the host's network reach all that listens on it, the hub too"
        yield Finding("failure", what, 'c.GPUSpawner.network_name = "gpuspawner"')
    elif given.spawner.get("use_internal_ip") is False:
        host_ip = given.spawner.get("host_ip") or "127.0.0.1"
        public = host_ip not in ("127.0.0.1", "localhost", "::1")
        what = f"each server's port is published on {host_ip} (use_internal_ip is False)"
        yield Finding(
            "warning" if public else "note",
            what,
            'c.GPUSpawner.network_name = "gpuspawner"\nc.GPUSpawner.use_internal_ip = True',
        )


def host_folders(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """The engine's socket, or a folder of the host that is root's alone, mounted in servers."""
    places = {name: given.spawner.get(name) for name in ("volumes", "mounts")}
    places["read_only_volumes"] = given.spawner.get("read_only_volumes")
    places["extra_host_config"] = host_config(given).get("binds")
    for name, value in places.items():
        for source in filter(None, _sources(value)):
            if source.endswith("docker.sock"):
                what = (
                    f"{given.where(name)}: who has docker.sock in their server is root on the host"
                )
                yield Finding("failure", what, f"remove {source}")
            elif (source.rstrip("/") or "/") in DANGEROUS_FOLDERS:
                state = "warning" if name == "read_only_volumes" else "failure"
                what = f"{given.where(name)}: {source} of the host is in every server"
                yield Finding(state, what, f"remove {source}")  # type: ignore[arg-type]


def _sources(value: Any) -> Iterator[str]:
    """Yield what is mounted: a mapping's keys, what precedes ":" in a list, a mount's source."""
    if isinstance(value, Mapping):
        yield from value
    for each in value if isinstance(value, list) else ():
        if isinstance(each, str):
            yield each.partition(":")[0]
        elif isinstance(each, Mapping):
            yield str(each.get("source") or each.get("Source") or "")


def named_gpus(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """GPUs that every server would get, without a lease."""
    extra, where = host_config(given), given.where("extra_host_config")
    for request in extra.get("device_requests") or []:
        if not isinstance(request, Mapping):
            continue
        if not asks_for_gpus(request):
            if beyond := names_beyond(request, given.spawner.get("allowed_devices") or []):
                what = f"{where}: device_requests asks for {beyond}, so every start is refused"
                advice = f"c.GPUSpawner.allowed_devices = {beyond.split(', ')!r}"
                by_name = bool(request.get("DeviceIDs") and not request.get("Count"))
                yield Finding(
                    "failure",
                    what,
                    f"remove it, or allow it: {advice}" if by_name else "name them: DeviceIDs",
                )
        elif request.get("DeviceIDs"):
            what = f"{where}: device_requests names GPUs, so every start is refused"
            yield Finding("failure", what, "remove device_requests: leases make them")
        elif request.get("Count"):
            what = f"{where}: the count in device_requests has no effect: a lease says how many"
            yield Finding("note", what, "remove it, or set c.GPUSpawner.default_gpus")
    files, rules = (extra.get(name) or [] for name in ("devices", "device_cgroup_rules"))
    try:
        refuse_device_files({"Devices": files, "DeviceCgroupRules": rules})
    except ValueError:
        name = "device_cgroup_rules" if rules else "devices"
        what = f"{where}: {name} would give GPUs to every server, so every start is refused"
        yield Finding("failure", what, f"remove them from {name}: leases give the devices")
    variables = given.spawner.get("environment") or {}
    if VISIBLE_DEVICES in variables:
        what = f"{given.where('environment')}: {VISIBLE_DEVICES} has no effect: a lease sets it"
        yield Finding("note", what, f"remove {VISIBLE_DEVICES}")
    if "CUDA_VISIBLE_DEVICES" in variables:
        what = f"{given.where('environment')}: CUDA_VISIBLE_DEVICES hides GPUs that were granted"
        yield Finding("warning", what, "remove CUDA_VISIBLE_DEVICES")


def gpu_numbers(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Limits above the number of this host's GPUs, and models that it doesn't have."""
    if gpus is None:
        return
    limit = given.spawner.get("gpu_limit")
    if limit is not None and limit > len(gpus):
        what = f"{given.where('gpu_limit')} is {limit}, and this machine has {len(gpus)}"
        yield Finding("warning", what, f"c.GPUSpawner.gpu_limit = {len(gpus)}")
    known = {gpu.uuid.lower() for gpu in gpus if gpu.uuid}
    for uuid in given.spawner.get("excluded_gpus") or []:
        if uuid.lower() not in known:
            what = f"{given.where('excluded_gpus')}: this machine has no GPU {uuid}"
            yield Finding("warning", what, "see `gpuspawner gpus --json`, or `nvidia-smi -L`")
    for problem in sharing_problems(given.spawner.get("shared_gpus") or {}, gpus):
        what = f"{given.where('shared_gpus')}: {problem.removeprefix('shared_gpus ')}"
        yield Finding("warning", what.rstrip("."), "see `gpuspawner gpus`, or `nvidia-smi -L`")
    kinds = set(kind_shares(_as_shared(given, gpus)))
    for name in ("allowed_kinds", "default_kind"):
        value = given.spawner.get(name) or []
        for kind in [value] if isinstance(value, str) else value:
            if kind not in kinds and kind not in (WHOLE, NOTHING):
                what = f"{given.where(name)}: this machine has no GPU of the kind {kind}"
                there = ", ".join(sorted(kinds)) or "none"
                yield Finding("warning", what, f"it has: {there}")
    models = {gpu.model for gpu in gpus}
    for model in given.spawner.get("allowed_models") or []:
        if model not in models:
            what = f"{given.where('allowed_models')}: this machine has no {model}"
            yield Finding("warning", what, f"it has: {', '.join(sorted(models)) or 'none'}")


def _as_shared(given: Configuration, gpus: Sequence[GPU]) -> list[GPU]:
    """Return the units of GPUs as the configuration shares them."""
    shared = given.spawner.get("shared_gpus") or {}
    whole = [gpu for gpu in gpus if gpu.kind == WHOLE and gpu.state != "mig"]
    parts = [gpu for gpu in gpus if gpu.kind != WHOLE]
    return [unit for gpu in whole for unit in split(gpu, shared, ())] + parts


def defaults(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Defaults above their limit: a choice that names none gets the limit."""
    for default, limit in DEFAULTS:
        usual, most = given.spawner.get(default), given.spawner.get(limit)
        if not given.sets(default) or not isinstance(usual, NUMBER) or not isinstance(most, NUMBER):
            continue
        if usual > most:
            many, few = (_amount(default, value) for value in (usual, most))
            what = f"{given.where(default)} is {many}, and {given.where(limit)} {few}: that counts"
            yield Finding("warning", what, f"write c.GPUSpawner.{default} = {few}, or less")


NUMBER = (int, float)


def _amount(name: str, value: float) -> str:
    return f'"{value / GIB:g}G"' if name.startswith("mem_") else f"{value:g}"


def users_folders(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A folder of the host per user, which the engine creates as root's at the first start."""
    if given.spawner.get("pre_spawn_hook") or _begins_as_root(given):
        return  # it may make them, or give them to the user
    for name, source in _mounted_folders(given):
        if "{" in source:
            what = (
                f"{given.where(name)}: where {source} isn't there yet, the engine makes it as "
                "root's, and its user can't save"
            )
            advice = (
                f"make it before, as the image's user's: sudo install -d -o 1000 -g 100 {source}\n"
                'or keep homes in volumes: c.GPUSpawner.home_volume = "home-{username}"'
            )
            yield Finding("warning", what, advice)


def missing_folders(given: Configuration, here: Path = Path("/")) -> Iterator[Finding]:
    """Missing folders of this host: the engine creates them as root's, or refuses the container.

    Args:
        given: the configuration.
        here: the host's root folder.
    """
    for name, source in _mounted_folders(given):
        if "{" in source or (here / source.lstrip("/")).exists():
            continue
        what = f"{given.where(name)}: there is no {source}, and the engine makes it as root's"
        if name == "mounts":
            what = f"{given.where(name)}: there is no {source}, and no server starts without it"
        state = "failure" if name == "mounts" else "warning"
        yield Finding(state, what, f"sudo install -d -o 1000 -g 100 {source}")  # type: ignore[arg-type]


def _mounted_folders(given: Configuration) -> Iterator[tuple[str, str]]:
    """Yield (trait, folder of the host) for each folder that is mounted in servers."""
    places = {name: given.spawner.get(name) for name in ("volumes", "read_only_volumes", "mounts")}
    places["extra_host_config"] = host_config(given).get("binds")
    for name, value in places.items():
        for source in _sources(value):
            if source.startswith("/"):
                yield name, source


def root_starts(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """NB_UID: Jupyter's images start as root and become that user, which needs capabilities."""
    variables = given.spawner.get("environment") or {}
    asked = [name for name in AS_ROOT if name in variables]
    if not asked:
        return
    where = f"{given.where('environment')}: {asked[0]}"
    if not _begins_as_root(given):
        what = f"{where} has no effect where a server doesn't begin as root"
        line = 'c.GPUSpawner.extra_create_kwargs = {"user": "root"}'
        yield Finding("warning", what, f"{line}\nor remove {asked[0]}")
        return
    extra = host_config(given)
    dropped = {str(word).upper() for word in extra.get("cap_drop") or []}
    added = {str(word).upper().removeprefix("CAP_") for word in extra.get("cap_add") or []}
    missing = [word for word in ROOT_NEEDS if "ALL" in dropped and not {word, "ALL"} & added]
    if missing:
        what = f"{where}: a server that begins as root can't become its user without capabilities"
        words = ", ".join(f'"{word}"' for word in missing)
        yield Finding("warning", what, f'in extra_host_config: "cap_add": [{words}]')


def _begins_as_root(given: Configuration) -> bool:
    create = given.spawner.get("extra_create_kwargs") or {}
    return str(create.get("user", "")).partition(":")[0] in ("root", "0")


def container_names(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A `name_template` that the engine refuses, or that gives all users' containers one name."""
    template, where = given.spawner.get("name_template"), given.where("name_template")
    name = (given.plan.get("create") or {}).get("name")
    if not given.sets("name_template") or not isinstance(template, str) or name is None:
        return
    usual = 'c.GPUSpawner.name_template = "{prefix}-{username}"'
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
        what = f"{where}: the engine takes no container by the name of {name!r}"
        yield Finding(
            "failure", what, f"as {usual}; {{servername}} and {{imagename}} are there too"
        )
    elif "username" not in template and "pseudonym" not in template:
        what = f"{where}: only one user's server can run, as all have the name {name!r}"
        yield Finding("failure", what, f"as {usual}")


def allowed_versions(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Keys of image versions that aren't in the catalogue."""
    for key in given.spawner.get("allowed_versions") or []:
        if key not in given.versions:
            what = f"{given.where('allowed_versions')}: there is no image version {key!r}"
            yield Finding("warning", what, f"there are: {', '.join(given.versions)}")


def set_twice(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A trait that is set for `c.DockerSpawner` and `c.GPUSpawner`: the latter counts."""
    order = list(given.sections)
    for position, section in enumerate(order):
        for name in given.sections[section]:
            nearer = [later for later in order[position + 1 :] if name in given.sections[later]]
            if nearer:
                what = f"c.{section}.{name} has no effect: c.{nearer[-1]}.{name} counts"
                yield Finding("note", what, f"remove c.{section}.{name}")


def starts(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A limit of concurrent starts: for JupyterHub, a server that waits for GPUs is starting."""
    limit, queue = given.hub.get("concurrent_spawn_limit"), given.spawner.get("queue_length")
    waits = given.spawner.get("longest_wait_minutes") != 0
    if not isinstance(limit, int) or limit == 0:
        return
    if limit < FEW_STARTS or (waits and isinstance(queue, int) and limit < queue):
        what = (
            f"c.JupyterHub.concurrent_spawn_limit is {limit}: who comes while {limit} start or "
            "wait for GPUs is turned away"
        )
        line = "c.JupyterHub.concurrent_spawn_limit = 0    (c.GPUSpawner.queue_length is the limit)"
        yield Finding("note", what, line)


def log_in(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """An authenticator that lets anybody log in."""
    name = given.hub.get("authenticator", "")
    if name.rpartition(".")[2] in ("dummy", "DummyAuthenticator"):
        has_password = given.hub.get("dummy_password")
        how = "with one password" if has_password else "without any password"
        what = f"c.JupyterHub.authenticator_class = {name!r} lets everybody in, {how}"
        advice = 'c.JupyterHub.authenticator_class = "pam"    (others: docs/how-to/log-in.md)'
        yield Finding("note" if has_password else "warning", what, advice)


def broken_log_in(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """An authenticator that doesn't work with this version of JupyterHub."""
    if given.hub.get("native_is_broken"):
        what = (
            f"c.JupyterHub.authenticator_class = {given.hub.get('authenticator')!r}: every log-in "
            "is answered with error 500, as this NativeAuthenticator uses what JupyterHub 6 hasn't "
            "got any more (statsd, in its LoginHandler.post)"
        )
        advice = f"{sys.executable} -m pip install 'jupyterhub<6'    (or another log-in)"
        yield Finding("failure", what, advice)


def lists_of_the_allowed(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """`allow_all` beside a list of whom to let in, as a demonstration's line that was left."""
    allowing = str(given.hub.get("allows_all") or "")
    for setting in given.hub.get("allowed_lists") or [] if allowing else []:
        what = (
            f"{_at(given, allowing)} lets everybody in who can log in: {_at(given, setting)} keeps "
            "nobody out"
        )
        yield Finding("warning", what, f"remove {allowing} = True, or {setting}")


def _at(given: Configuration, setting: str) -> str:
    """Return a setting, as "c.Authenticator.allow_all", with its line."""
    _, section, name = setting.split(".")
    line = given.lines.get((section, name))
    return f"{setting} (line {line})" if line else setting


def shared_address(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Administrators who can open users' servers at the hub's own domain."""
    if given.hub.get("has_administrators") and not given.hub.get("subdomain_host"):
        what = (
            "an administrator who opens somebody's server lends its pages all that they may do on "
            "the hub"
        )
        advice = (
            "where users aren't trusted: c.JupyterHub.subdomain_host, or a role that opens no "
            "servers    (docs/how-to/log-in.md)"
        )
        yield Finding("warning", what, advice)


def encrypted_servers(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Servers that speak TLS with the hub, and a hub that can't look up their names."""
    if given.hub.get("internal_ssl") and not own_container_id():
        what = (
            "c.JupyterHub.internal_ssl: DockerSpawner has the hub reach servers by their "
            "containers' names then, which only a container on their network can look up"
        )
        advice = "remove that line, or run the hub in a container on c.GPUSpawner.network_name"
        yield Finding("failure", what, advice)


def encrypted_dashboard(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A dashboard on a hub whose parts speak TLS with each other."""
    if given.hub.get("internal_ssl") and given.hub.get("has_dashboard"):
        what = (
            "c.JupyterHub.internal_ssl: the dashboard doesn't work with it and ends, and so does "
            "the hub, which starts it"
        )
        advice = "remove that line, or the dashboard from c.JupyterHub.services"
        yield Finding("failure", what, advice)


def instructors(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Courses with instructors, and a dashboard through which they can't act as such."""
    taught_by = given.spawner.get("taught_by")
    if not taught_by or not given.hub.get("has_dashboard"):
        return
    if not any(each.partition("!")[0] in TEACHING for each in given.hub["dashboard_scopes"]):
        what = (
            f"{given.where(taught_by)}: instructors don't see their courses on the dashboard, "
            "which isn't allowed to learn their groups"
        )
        advice = (
            'add "read:users:groups" to oauth_client_allowed_scopes of the dashboard in '
            "c.JupyterHub.services (docs/how-to/courses.md)"
        )
        yield Finding("warning", what, advice)


def messages(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """Addresses to which no message can be sent. They have passwords in them, and aren't shown."""
    value = given.spawner.get("notify_urls")
    for found, advice in problems(len if _is_function(value) else value):
        yield Finding("warning", found, advice)


def check_in(given: Configuration, gpus: Sequence[GPU] | None) -> Iterator[Finding]:
    """A question whether people are there, on a page that has no button for the answer."""
    if given.spawner.get("check_in_minutes") and not given.hub.get("has_our_pages"):
        what = (
            f"{given.where('check_in_minutes')}: JupyterHub's own progress page has no button with "
            "which people could say that they are there"
        )
        advice = "write c.JupyterHub.template_paths = [gpuspawner.TEMPLATES]"
        yield Finding("failure", what, advice)


# The scopes of which one is that a user's groups are known.
# ref: https://jupyterhub.readthedocs.io/en/stable/rbac/scopes.html
TEACHING = frozenset({"admin:users", "inherit", "read:users", "read:users:groups"})

Rule = Callable[[Configuration, Sequence[GPU] | None], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    privileges,
    host_folders,
    named_gpus,
    unescaped_names,
    ports,
    missing_fences,
    memory,
    gpu_numbers,
    defaults,
    users_folders,
    root_starts,
    container_names,
    allowed_versions,
    set_twice,
    starts,
    log_in,
    broken_log_in,
    lists_of_the_allowed,
    shared_address,
    encrypted_servers,
    encrypted_dashboard,
    instructors,
    messages,
    check_in,
    kept_containers,
    unread_functions,
)
