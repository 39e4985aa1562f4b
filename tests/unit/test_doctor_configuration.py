"""What `gpuspawner doctor` says of configurations: mistakes, dangers, those that don't load."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.handlers.base import BaseHandler

from gpuspawner.doctor import configuration, configuration_rules
from gpuspawner.doctor.findings import Configuration, Context, Finding
from gpuspawner.doctor.loading import load
from gpuspawner.doctor.traits import SPAWNER_VALUES, json_value
from gpuspawner.gpus.model import GPU
from gpuspawner.gpus.nvml import Inventory
from gpuspawner.spawner import GPUSpawner

from ..support.paths import ROOT

UUID = "GPU-00000000-0000-4000-8000-000000000001"
GPUS = (GPU(UUID, 0, "Tesla T4"), GPU(UUID[:-1] + "2", 1, "Tesla T4"))
# What has nothing to be said against.
GOOD = """
c.JupyterHub.spawner_class = "gpu"
c.JupyterHub.hub_ip = "10.0.0.1"
c.GPUSpawner.network_name = "gpuspawner"
c.GPUSpawner.images = {"torch": "torch:2.7", "plain": "plain:1"}
c.GPUSpawner.mem_limit = "16G"
c.GPUSpawner.extra_host_config = {
    "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "pids_limit": 4096
}
"""
HOST_CONFIG = "c.GPUSpawner.extra_host_config.update({})\n"


def written(folder: Path, *lines: str, first: str = GOOD) -> Path:
    file = folder / "jupyterhub_config.py"
    file.write_text(first + "\n".join(lines) + "\n")
    return file


def read(folder: Path, *lines: str, first: str = GOOD) -> Configuration:
    file = written(folder, *lines, first=first)
    loaded = load(file)
    assert "error" not in loaded, loaded
    return configuration.from_loaded(file, loaded)


def settings(
    folder: Path, *lines: str, first: str = GOOD, gpus: Any = GPUS, driver: str | None = "570.1"
) -> list[Finding]:
    context = Context(None, folder, inventory=Inventory(driver, None, ()), gpus=gpus)
    context.configuration = read(folder, *lines, first=first)
    return list(configuration.settings(context))


def extra(value: str) -> str:
    return f"c.GPUSpawner.extra_host_config = dict(c.GPUSpawner.extra_host_config, **{value})"


def test_people_can_say_that_they_are_there_on_our_pages(tmp_path: Path) -> None:
    lines = "from gpuspawner import TEMPLATES", "c.JupyterHub.template_paths = [TEMPLATES]"
    found = settings(tmp_path, *lines, "c.GPUSpawner.check_in_minutes = 10")
    assert found == [Finding("ok", "nothing to change")]


def test_a_good_configuration_has_nothing_to_change(tmp_path: Path) -> None:
    assert settings(tmp_path) == [Finding("ok", "nothing to change")]


def test_of_the_shipped_configuration_only_what_its_administrator_can_lend_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    shipped = ROOT / "jupyterhub_config.py"
    loaded = configuration.load(shipped, tmp_path)
    given = configuration.from_loaded(shipped, loaded)
    context = Context(shipped, tmp_path, configuration=given)
    (told,) = configuration.settings(context)
    assert (told.state, "who opens somebody's server" in told.found) == ("warning", True)
    # It makes its secrets where it is loaded: neither in the hub's folder nor in ours.
    assert list(tmp_path.iterdir()) == []
    assert "network 'gpuspawner': The Docker Engine" in given.network_error


# ---- Mistakes and dangers ------------------------------------------------------------------------

# Line -> state, a part of what is found, a part of the advice.
SAID = [
    # Names and values.
    (
        "c.GPUSpawner.gpu_limt = 2",
        "failure",
        "c.GPUSpawner.gpu_limt (line 10)",
        "c.GPUSpawner.gpu_limit?",
    ),
    ("c.GPUSpawner.zzz = 2", "failure", "no such setting", "remove it"),
    (
        "c.GPUSpawner.gpu_limit = 'two'",
        "failure",
        'it must be a whole number, at least 0 or None, not "two"',
        "write c.GPUSpawner.gpu_limit = 1",
    ),
    ("c.DockerSpawner.gpu_limit = -1", "failure", "c.DockerSpawner.gpu_limit (line 10)", "= 1"),
    ("c.Spawner.mem_guarantee = '1X'", "failure", "c.Spawner.mem_guarantee (line 10)", '= "16G"'),
    (
        "c.GPUSpawner.ulimits = {'nofile': 'many'}",
        "failure",
        "ulimits['nofile'] must be a whole number or -1",
        'write c.GPUSpawner.ulimits = {"memlock": -1',
    ),
    ("c.GPUSpawner.images = {'a': 7}", "failure", "images['a']", ""),
    ("c.JupyterHub.hub_prt = 8081", "failure", "c.JupyterHub.hub_prt", "c.JupyterHub.hub_port?"),
    ("c.JupyterHub.hub_port = 'x'", "failure", "it must be a whole number", "hub_port = 8081"),
    ("c.GpuSpawner.gpu_limit = 1", "failure", "c.GpuSpawner is nobody's", "write c.GPUSpawner"),
    ("c.DokcerSpawner.remove = True", "failure", "c.DokcerSpawner", "write c.DockerSpawner"),
    ("c.Juypterhub.port = 1", "failure", "c.Juypterhub", "write c.JupyterHub"),
    (
        "c.SystemUserSpawner.image = 'x'",
        "note",
        "c.SystemUserSpawner has no effect",
        "c.GPUSpawner",
    ),
    (
        "c.DockerSpawner.mem_limit = '1G'",
        "note",
        "c.DockerSpawner.mem_limit has no effect",
        "remove",
    ),
    ("c.JupyterHub.spawner_class = 'gpuu'", "failure", "no spawner 'gpuu'", '"gpu"'),
    (
        "c.GPUSpawner.notify_urls = ['json://127.0.0.1', 'slack://hunter2']",
        "warning",
        "address 2 of c.GPUSpawner.notify_urls (slack://…) isn't one that Apprise takes",
        "try it with Apprise's own command",
    ),
    (
        "c.GPUSpawner.check_in_minutes = 10",
        "failure",
        "progress page has no button",
        "template_paths = [gpuspawner.TEMPLATES]",
    ),
    # Groups.
    (
        "c.Spawner.group_overrides = {'a': {'groups': ['x'], 'spawner_override': {'gpulimit': 4}}}",
        "failure",
        "group_overrides['a'] (line 10): gpulimit",
        "'gpu_limit'",
    ),
    (
        "c.Spawner.group_overrides = {'a': {'groups': [], 'spawner_override': {'gpu_limit': ''}}}",
        "failure",
        "group_overrides['a'] (line 10): gpu_limit: it must be a whole number",
        'write "gpu_limit": 1',
    ),
    (
        "c.Spawner.group_overrides = {'a': {'groups': 'x', 'spawner_override': {}}}",
        "failure",
        "groups must be a list",
        "['x']",
    ),
    (
        "c.Spawner.group_overrides = {'a': {'spawner_override': {'gpu_limit': 4}}}",
        "failure",
        "lacks groups",
        '"groups": ["lab"]',
    ),
    # Out of one's own folder.
    ("c.GPUSpawner.home_volume = '{raw_username}'", "failure", "isn't escaped", "{username}"),
    (
        "c.GPUSpawner.volumes = {'h-{raw_username}': '/h'}",
        "failure",
        "volumes (line 10)",
        "{username}",
    ),
    (
        "c.GPUSpawner.volumes = {'vol-{username}': '/h/{raw_username}'}",
        "failure",
        "isn't escaped",
        "",
    ),
    ("c.GPUSpawner.read_only_volumes = {'{raw_username}': '/h'}", "failure", "isn't escaped", ""),
    (
        "c.GPUSpawner.mounts = [{'source': '{raw_servername}', 'target': '/h'}]",
        "failure",
        "{raw_servername}",
        "{servername}",
    ),
    (extra("{'binds': ['vol-{raw_username}:/h']}"), "failure", "isn't escaped", "{username}"),
    # Out of the container.
    (extra("{'privileged': True}"), "failure", "see every GPU", 'remove "privileged"'),
    ("c.GPUSpawner.extra_create_kwargs = {'privileged': True}", "failure", "see every GPU", ""),
    (extra("{'cap_add': ['SYS_ADMIN']}"), "failure", "SYS_ADMIN", "remove"),
    (extra("{'cap_add': ['CAP_SYS_PTRACE']}"), "failure", "SYS_PTRACE", "remove"),
    (
        extra("{'security_opt': ['no-new-privileges', 'seccomp=unconfined']}"),
        "warning",
        "seccomp=unconfined",
        "remove",
    ),
    (extra("{'pid_mode': 'host'}"), "failure", "pid_mode", "remove"),
    (extra("{'ipc_mode': 'host'}"), "warning", "ipc_mode", "remove"),
    ("c.GPUSpawner.volumes = {'/var/run/docker.sock': '/d'}", "failure", "docker.sock", "remove"),
    (extra("{'binds': ['/run/docker.sock:/d']}"), "failure", "docker.sock", "remove"),
    ("c.GPUSpawner.read_only_volumes = {'/run/docker.sock': '/d'}", "failure", "docker.sock", ""),
    (
        "c.GPUSpawner.mounts = [{'source': '/var/run/docker.sock', 'target': '/d'}]",
        "failure",
        "docker.sock",
        "remove",
    ),
    ("c.GPUSpawner.volumes = {'/': '/host'}", "failure", "/ of the host", "remove /"),
    ("c.GPUSpawner.volumes = {'/etc/': '/host'}", "failure", "/etc/ of the host", "remove"),
    ("c.GPUSpawner.read_only_volumes = {'/etc': '/e'}", "warning", "/etc of the host", "remove"),
    (extra("{'cap_drop': []}"), "warning", "without cap_drop ALL", '"cap_drop": ["ALL"]'),
    (extra("{'security_opt': []}"), "warning", "without no-new-privileges", "no-new-privileges"),
    (extra("{'pids_limit': None}"), "note", "fork bomb", '"pids_limit": 4096'),
    # Ports.
    (extra("{'port_bindings': {8888: 8888}}"), "warning", "publishes ports", "port_bindings"),
    (extra("{'publish_all_ports': True}"), "warning", "publish_all_ports", "remove"),
    (extra("{'network_mode': 'host'}"), "failure", "extra_host_config", "network_name"),
    ("c.GPUSpawner.network_name = 'host'", "failure", "the host's network", "network_name"),
    ("c.GPUSpawner.use_internal_ip = False", "note", "published on 127.0.0.1", "use_internal_ip"),
    # GPUs past the ledger.
    (
        extra("{'device_requests': [{'Driver': 'nvidia', 'DeviceIDs': ['0']}]}"),
        "failure",
        "names GPUs",
        "remove device_requests",
    ),
    (
        extra("{'device_requests': [{'Count': -1, 'Capabilities': [['gpu']]}]}"),
        "note",
        "the count in device_requests",
        "default_gpus",
    ),
    (
        extra("{'devices': ['/dev/nvidia0:/dev/nvidia0']}"),
        "failure",
        "devices would give GPUs to every server, so every start is refused",
        "remove them from devices",
    ),
    (
        extra("{'device_cgroup_rules': ['c 195:* rwm']}"),
        "failure",
        "device_cgroup_rules would give GPUs",
        "remove them from device_cgroup_rules",
    ),
    (
        extra("{'device_requests': [{'Driver': 'cdi', 'DeviceIDs': ['example.com/nic=1']}]}"),
        "failure",
        "asks for example.com/nic=1, so every start is refused",
        "c.GPUSpawner.allowed_devices = ['example.com/nic=1']",
    ),
    (
        extra("{'device_requests': [{'Driver': 'amd', 'Count': -1}]}"),
        "failure",
        "asks for devices of amd without names",
        "name them: DeviceIDs",
    ),
    (
        "c.Spawner.environment = {'NVIDIA_VISIBLE_DEVICES': 'all'}",
        "note",
        "has no effect",
        "remove",
    ),
    ("c.Spawner.environment = {'CUDA_VISIBLE_DEVICES': '0'}", "warning", "hides GPUs", "remove"),
    # Limits.
    (
        "c.GPUSpawner.gpu_limit = 3",
        "warning",
        "gpu_limit (line 10) is 3, and this machine has 2",
        "= 2",
    ),
    ("c.GPUSpawner.excluded_gpus = ['GPU-nope']", "warning", "no GPU GPU-nope", "nvidia-smi -L"),
    ("c.GPUSpawner.allowed_models = ['A100']", "warning", "no A100", "Tesla T4"),
    ("c.GPUSpawner.allowed_versions = ['torhc']", "warning", "'torhc'", "torch, plain"),
    ("c.GPUSpawner.mem_limit = None", "warning", "no mem_limit", '"16G"'),
    ("c.GPUSpawner.mem_limit = '4G'", "warning", "who fills /dev/shm is killed", "shm_size"),
    ("c.JupyterHub.concurrent_spawn_limit = 2", "note", "turned away", "queue_length"),
    ("c.JupyterHub.concurrent_spawn_limit = 50", "note", "turned away", "queue_length"),
    ("c.GPUSpawner.remove = False", "note", "stopped containers stay", "docker ps --all"),
    (
        "c.GPUSpawner.default_hours = 24; c.GPUSpawner.hour_limit = 12",
        "warning",
        "default_hours (line 10) is 24, and c.GPUSpawner.hour_limit (line 10) 12",
        "write c.GPUSpawner.default_hours = 12",
    ),
    (
        "c.GPUSpawner.default_gpus = 2; c.GPUSpawner.gpu_limit = 1",
        "warning",
        "default_gpus (line 10) is 2",
        "default_gpus = 1",
    ),
    ("c.GPUSpawner.mem_guarantee = '32G'", "warning", 'is "32G"', 'mem_guarantee = "16G"'),
    # Who can write what.
    (
        "c.GPUSpawner.volumes = {'/srv/homes/{username}': '/home/jovyan'}",
        "warning",
        "the engine makes it as root's",
        "sudo install -d -o 1000",
    ),
    ("c.GPUSpawner.environment = {'NB_UID': '1001'}", "warning", "NB_UID", '{"user": "root"}'),
    (
        "c.GPUSpawner.environment = {'NB_UID': '1001'}; "
        "c.GPUSpawner.extra_create_kwargs = {'user': 'root'}",
        "warning",
        "without capabilities",
        '"cap_add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]',
    ),
    # What docker-py refuses, whatever it says it with.
    (extra("{'mem_reservation': '12Q'}"), "failure", "extra_host_config (line 10): mem_reser", ""),
    (extra("{'nope': 1}"), "failure", "unexpected keyword argument 'nope'", "no server starts"),
    (
        extra("{'shm_sise': 1}"),
        "failure",
        "argument 'shm_sise'",
        "did you mean shm_size? No server",
    ),
    (
        extra("{'hostname': 'x'}"),
        "failure",
        "(line 10): hostname",
        "belongs in c.GPUSpawner.extra_cr",
    ),
    (extra("{'binds': '/x'}"), "failure", "extra_host_config (line 10): binds: ", ""),
    (
        "c.GPUSpawner.extra_create_kwargs = {'device_requests': []}",
        "failure",
        "extra_create_kwargs (line 10): device_requests: ",
        "it belongs in c.GPUSpawner.extra_host_config: no server starts",
    ),
    ("c.GPUSpawner.extra_create_kwargs = {'labels': {'a': open}}", "failure", "labels: Obj", ""),
    ("c.GPUSpawner.volumes = {'{nope}': '/x'}", "failure", "(line 10): KeyError: 'nope'", "mend"),
    ("c.GPUSpawner.mounts = [{'sourc': 'x', 'target': '/x'}]", "failure", "'source'", "mend it"),
    # Functions: for somebody whom no hub knows.
    (
        "c.GPUSpawner.mem_limit = lambda spawner: {'ada': '1G'}[spawner.user.name]",
        "note",
        "mem_limit (line 10) is a function, which fails for a user 'doctor': KeyError",
        "if it knows your users",
    ),
    (
        "c.Spawner.environment = {'A': lambda spawner: {'ada': '1'}[spawner.user.name]}",
        "note",
        "can't be told for a user 'doctor': KeyError",
        "if it knows your users",
    ),
    ("c.GPUSpawner.home_path = lambda spawner: '/'", "failure", "be a text, not a function", "= "),
    # Raw words of traitlets.
    ("c.GPUSpawner.remove = 'yes'", "failure", 'True or False, not "yes"', "remove = True"),
    ("c.GPUSpawner.gpu_policy = 'x'", "failure", 'one of "pack", "spread"', '= "pack"'),
    ("c.GPUSpawner.warning_minutes = -1", "failure", "a number, at least 0, not -1", "= 15"),
    ("c.GPUSpawner.idle_utilization = 101", "failure", "from 0 to 100, not 101", "= 5"),
    (
        "c.GPUSpawner.group_gpu_limits = {'a': 'x'}",
        "failure",
        "group_gpu_limits['a'] (line 10) must be a whole number from 0 up, got 'x'",
        "change line 10",
    ),
    (
        "c.GPUSpawner.shared_gpus = {'Tesla T4': 0}",
        "failure",
        "shared_gpus['Tesla T4'] (line 10) must be a whole number from 1 to 64, got 0",
        "change line 10",
    ),
    ("c.GPUSpawner.shared_gpus = {'T4': True}", "failure", "got True", "change line 10"),
    ("c.GPUSpawner.shared_gpus = {'': 2}", "failure", "a text that isn't empty", "A100"),
    ("c.GPUSpawner.shared_gpus = ['T4']", "failure", "must be a mapping", '-40GB": 8}'),
    ("c.GPUSpawner.excluded_gpus = [7]", "failure", "a list whose values are each a text", '["…"]'),
    ("c.GPUSpawner.hour_limit = 0", "failure", "must be more than 0", "hour_limit = 1"),
    (
        "c.GPUSpawner.volumes = ['a:/b']",
        "failure",
        "must be a mapping",
        '= {"home-{username}": "/h',
    ),
    ("c.GPUSpawner.home_volume = 'x'", "failure", "(line 10): 'x'", '= "home-{username}"'),
    (
        "c.GPUSpawner.mem_limit = lambda spawner: 'much'",
        "failure",
        "(line 10) is a function that returns for a user 'doctor' what it may not",
        'return a number of bytes as 16 * 1024**3 or "16G"',
    ),
    (
        "c.DockerSpawner.name_template = '{prefix}-{user}'",
        "failure",
        "name_template (line 10): the engine takes no container by the name of '{prefix}-{user}'",
        '= "{prefix}-{username}"',
    ),
    (
        "c.DockerSpawner.name_template = '{prefix}'",
        "failure",
        "(line 10): only one user's",
        "{user",
    ),
    (
        "c.Spawner.pre_spawn_hook = 'hook'",
        "failure",
        'c.Spawner.pre_spawn_hook (line 10): it must be a function, not "hook"',
        "write c.Spawner.pre_spawn_hook = its_name",
    ),
    # Who may log in.
    (
        "c.JupyterHub.authenticator_class = 'pamm'",
        "failure",
        "authenticator_class (line 10): there is no 'pamm' in",
        'write c.JupyterHub.authenticator_class = "pam"',
    ),
    (
        "c.JupyterHub.authenticator_class = 'ldapauthenticator.LDAPAuthenticator'",
        "failure",
        "there is no 'ldapauthenticator.LDAPAuthenticator' in",
        "-m pip install jupyterhub-ldapauthenticator",
    ),
    (
        "c.JupyterHub.authenticator_class = 'jupyterhub.auth.Pam'",
        "failure",
        "there is no 'jupyterhub.auth.Pam' in the module jupyterhub.auth",
        "",
    ),
    ("c.JupyterHub.authenticator_class = 'dummy'", "warning", "without any password", "pam"),
    (
        "c.Authenticator.allow_all = True; c.PAMAuthenticator.allowed_groups = {'lab'}",
        "warning",
        "c.Authenticator.allow_all (line 10) lets everybody in who can log in: "
        "c.PAMAuthenticator.allowed_groups (line 10) keeps nobody out",
        "remove c.Authenticator.allow_all = True",
    ),
    ("c.Authenticator.admin_users = {'ada'}", "warning", "opens somebody's server", "subdomain"),
    ("c.PAMAuthenticator.admin_groups = {'wheel'}", "warning", "opens somebody's server", "role"),
    # What can't be known.
    ("c.Spawner.group_overrides = lambda spawner: {}", "note", "is a function", ""),
]


@pytest.mark.parametrize(("line", "state", "found", "advice"), SAID)
def test_a_line_that_is_a_mistake_or_a_danger_is_told(
    tmp_path: Path, line: str, state: str, found: str, advice: str
) -> None:
    told = settings(tmp_path, line)
    fitting = [each for each in told if found in each.found and each.state == state]
    assert fitting, told
    assert advice in fitting[0].advice
    assert not fitting[0].blocks_others
    # Nothing else is said of that one line.
    assert len(told) == 1, told


def test_what_a_function_returns_is_looked_at_as_if_it_were_written_there(tmp_path: Path) -> None:
    line = "c.GPUSpawner.extra_host_config = "
    fences = "'cap_drop': ['ALL'], 'security_opt': ['no-new-privileges'], 'pids_limit': 9"
    (note,) = settings(tmp_path, f"{line}lambda spawner: {{{fences}}}")
    assert note.state == "note"
    assert "(line 10) is a function: looked at is what it returns for 'doctor'" in note.found
    made = "async def made(spawner):\n    return {'privileged': True, 'cap_drop': ['ALL']}\n"
    wrong, fences, pids, _ = settings(tmp_path, f"{made}{line}made")
    assert (wrong.state, wrong.advice) == ("failure", 'remove "privileged"')
    assert "(line 12): privileged servers" in wrong.found
    assert fences.advice == pids.advice
    assert fences.advice == 'add to it: "security_opt": ["no-new-privileges"], "pids_limit": 4096'
    # One that fails for a user of no hub's isn't known.
    notes = settings(tmp_path, f"{line}lambda spawner: {{}}[spawner.user.name]")
    assert any("what it returns isn't seen here" in each.found for each in notes)


@pytest.mark.parametrize(
    "line",
    [
        "c.GPUSpawner.volumes = {'home-{username}': '/home/jovyan'}",
        "c.GPUSpawner.volumes = {'/srv/homes/{username}': '/home/jovyan'}; "
        "c.Spawner.pre_spawn_hook = lambda spawner: None",
        "c.GPUSpawner.extra_create_kwargs = {'user': 'root'}; "
        "c.GPUSpawner.volumes = {'/srv/homes/{username}': '/home/jovyan'}",
        "c.GPUSpawner.mem_limit = lambda spawner: '32G'",
        "c.GPUSpawner.cpu_limit = lambda spawner: 2.0 if spawner.user.name else 1.0",
        "c.DockerSpawner.image = 'torch:2.7'",
        "c.Spawner.environment = {'WHO': lambda spawner: spawner.user.escaped_name}",
        "c.GPUSpawner.default_gpus = 1; c.GPUSpawner.gpu_limit = 2; c.GPUSpawner.hour_limit = 5",
        "c.GPUSpawner.gpu_limit = 0",
        "c.JupyterHub.bind_url = 'http://127.0.0.1:8000/jupyter/'",
        "c.JupyterHub.spawner_class = 'gpuspawner.GPUSpawner'",
        "c.GPUSpawner.gpu_limit = 2",
        f"c.GPUSpawner.excluded_gpus = ['{UUID.upper()}']",
        "c.Spawner.environment = {'EDITOR': 'vim'}",
        "c.DockerSpawner.prefix = 'lab'",
        "c.DockerSpawner.name_template = '{prefix}-{username}-{servername}'",
        "c.Spawner.post_stop_hook = lambda spawner: None",
        "c.Spawner.group_overrides = {'a': {'groups': [], 'spawner_override': {'remove': True}}}",
        "c.Spawner.group_overrides = {'a': {'groups': ['x'], "
        "'spawner_override': {'mem_limit': lambda spawner: '1G'}}}",
        "c.GPUSpawner.volumes.update({'course': '/course'})",
        "c.GPUSpawner.args.append('--debug')",
        "c.JupyterHub.concurrent_spawn_limit = 0",
        "c.GPUSpawner.longest_wait_minutes = 0; c.JupyterHub.concurrent_spawn_limit = 50",
        "c.Authenticator.allow_all = True",
        "c.Authenticator.admin_users = set()",
        "c.Authenticator.allow_all = False; c.Authenticator.allowed_users = {'ada'}",
        "c.Authenticator.admin_users = {'a'}; c.JupyterHub.subdomain_host = 'https://hub.example'",
        "c.DummyAuthenticator.password = 'x'",
        "c.JupyterHub.load_groups = {'lab': {'users': []}}",
        extra("{'cap_add': ['NET_BIND_SERVICE']}"),
        extra("{'device_requests': [{'Driver': 'other', 'DeviceIDs': ['x']}]}")
        + "; c.GPUSpawner.allowed_devices = ['x']",
        extra("{'devices': ['/dev/snd']}"),
    ],
)
def test_a_line_that_is_well_is_not_spoken_of(tmp_path: Path, line: str) -> None:
    assert settings(tmp_path, line) == [Finding("ok", "nothing to change")]


def test_folders_of_the_host_that_are_missing_are_told(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    given = read(
        tmp_path,
        f"c.GPUSpawner.volumes = {{'{there}': '/a', '{missing}': '/b', 'named': '/c'}}",
        f"c.GPUSpawner.mounts = [{{'source': '{missing}', 'target': '/d', 'type': 'bind'}}]",
    )
    made, refused = configuration_rules.missing_folders(given)
    assert (made.state, refused.state) == ("warning", "failure")
    assert made.found.startswith("c.GPUSpawner.volumes (line 10): there is no ")
    assert refused.found.startswith("c.GPUSpawner.mounts (line 11): there is no ")
    assert made.advice == f"sudo install -d -o 1000 -g 100 {missing}"


NATIVE = """
class Statsd:
    async def post(self):
        self.statsd.timer("login.authenticate").start()

class Plain:
    async def post(self):
        self.finish()
"""


@pytest.mark.parametrize(("handler", "is_broken"), [("Statsd", True), ("Plain", False)])
def test_a_log_in_that_asks_for_what_jupyterhub_6_has_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, is_broken: bool
) -> None:
    """As NativeAuthenticator 1.3.0 does, with JupyterHub 6 only."""
    package = tmp_path / "lent"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "handlers.py").write_text(f"{NATIVE}\nLoginHandler = {handler}\n")
    (package / "auth.py").write_text(
        "from jupyterhub.auth import Authenticator\n"
        "from . import handlers\n"
        "class Lent(Authenticator):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lent", "lent.handlers", "lent.auth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    told = settings(tmp_path, "c.JupyterHub.authenticator_class = 'lent.auth.Lent'")
    failed = [each for each in told if each.state == "failure"]
    assert bool(failed) is (is_broken and not hasattr(BaseHandler, "statsd"))
    for each in failed:
        assert "every log-in is answered with error 500" in each.found
        assert "'jupyterhub<6'" in each.advice


def test_without_a_driver_nothing_is_said_of_the_number_of_gpus(tmp_path: Path) -> None:
    told = settings(tmp_path, "c.GPUSpawner.gpu_limit = 9", gpus=(), driver=None)
    assert told == [Finding("ok", "nothing to change")]


def test_another_spawner_is_told_and_its_settings_are_not_judged_by_our_rules(
    tmp_path: Path,
) -> None:
    told = settings(
        tmp_path, first="c.JupyterHub.spawner_class = 'docker'\nc.GPUSpawner.gpu_limit = 1"
    )
    assert [each.state for each in told] == ["note", "failure"]
    assert "c.JupyterHub.spawner_class (line " in told[1].found
    assert "hands out no GPUs" in told[1].found
    assert '"gpu"' in told[1].advice


def test_a_spawner_of_the_configuration_s_own_is_judged_as_ours(tmp_path: Path) -> None:
    lines = """
from gpuspawner.spawner import GPUSpawner
class LabSpawner(GPUSpawner):
    pass
c.JupyterHub.spawner_class = LabSpawner
c.LabSpawner.gpu_limt = 3
c.LabSpawner.remove = False
"""
    told = settings(tmp_path, lines)
    assert sorted(each.state for each in told) == ["failure", "note"]
    assert any("c.LabSpawner.remove (line 16)" in each.found for each in told)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    lines = [
        "c.GPUSpawner.gpu_limt = 2",
        "c.GPUSpawner.home_volume = '{raw_username}'",
        "c.GPUSpawner.shm_size = 'x'",
    ]
    told = settings(tmp_path, *lines)
    assert [each.found.partition(" ")[0] for each in told] == [
        "c.GPUSpawner.gpu_limt",
        "c.GPUSpawner.home_volume",
        "c.GPUSpawner.shm_size",
    ]


def test_no_password_is_repeated(tmp_path: Path) -> None:
    told = settings(tmp_path, "c.JupyterHub.cookie_secret = 'hush-hush'")
    assert "cookie_secret" in told[0].found
    assert "hush" not in told[0].found + told[0].advice
    secret = "c.SharedPasswordAuthenticator.user_password = 'hush-hush'"
    assert "hush" not in str(load(written(tmp_path, secret)))


def test_every_value_that_a_rule_reads_is_a_trait() -> None:
    for name in SPAWNER_VALUES:
        assert GPUSpawner().has_trait(name), name


def test_what_json_has_not_is_told_by_its_kind() -> None:
    value = {1: {"a", "b"}, "f": print, "o": Path("x"), "n": [None, True, 1.5]}
    shown = json_value(value)
    assert sorted(shown["1"]) == ["a", "b"]
    assert shown["f"] == {"function": "builtin_function_or_method"}
    assert "other" in shown["o"]
    assert shown["n"] == [None, True, 1.5]


# ---- Where the hub is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "listens", "connects"),
    [
        ("", ["127.0.0.1", 8081], ["127.0.0.1", 8081]),
        ("c.JupyterHub.hub_ip = '10.1.2.3'", ["10.1.2.3", 8081], ["10.1.2.3", 8081]),
        (
            "c.JupyterHub.hub_ip = '10.1.2.3'; c.JupyterHub.hub_port = 9",
            ["10.1.2.3", 9],
            ["10.1.2.3", 9],
        ),
        (
            "c.JupyterHub.hub_ip = '0.0.0.0'; c.JupyterHub.hub_connect_ip = '10.1.2.3'",
            ["0.0.0.0", 8081],
            ["10.1.2.3", 8081],
        ),
        ("c.JupyterHub.hub_bind_url = 'http://10.1.2.3:99'", ["10.1.2.3", 99], ["10.1.2.3", 99]),
        (
            "c.JupyterHub.hub_bind_url = 'http://:99'; "
            "c.JupyterHub.hub_connect_url = 'http://hub.example.org'",
            ["", 99],
            ["hub.example.org", 80],
        ),
    ],
)
def test_where_the_hub_listens_and_where_servers_look_for_it(
    tmp_path: Path, lines: str, listens: list, connects: list
) -> None:
    given = read(tmp_path, lines, first="c.JupyterHub.spawner_class = 'gpu'\n")
    assert given.hub["listens"] == listens
    assert given.hub["connects"] == connects


# ---- Configurations that can't be loaded ---------------------------------------------------------


def loaded(folder: Path, *lines: str, first: str = "") -> tuple[list[Finding], Context]:
    """Load as `doctor` does: in a process of its own."""
    hub = folder / "hub"
    hub.mkdir(exist_ok=True)
    context = Context(written(folder, *lines, first=first), hub)
    return list(configuration.configuration(context)), context


@pytest.mark.parametrize(
    ("lines", "found", "advice"),
    [
        ("\nc.GPUSpawner.gpu_limit = = 2", "line 2: SyntaxError", "mend that line"),
        ("\n\nc.x = 1 / 0", "line 3: ZeroDivisionError: division by zero", "mend that line"),
        ("import nowhere_to_be_found", "ModuleNotFoundError", "pip install nowhere_to_be_found"),
        ("import sys\nsys.exit('no licence')", "line 2: SystemExit: no licence", "mend"),
        ("open('/nowhere/secret')", "line 1: FileNotFoundError", "mend"),
        ("def f():\n    return unknown\nf()", "line 2: NameError", "mend"),
        (
            "from gpuspawner.images import load_catalogue\nload_catalogue('/no')",
            "line 2: ValueError",
            "",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_with_its_line(
    tmp_path: Path, lines: str, found: str, advice: str
) -> None:
    file = written(tmp_path, lines, first="")
    told = configuration.not_loaded(Context(file, tmp_path), load(file)["error"])
    assert told.state == "failure"
    assert found in told.found
    assert str(tmp_path) in told.found
    assert advice in told.advice
    assert "Traceback" not in told.found


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("import os\nos._exit(7)", "exit status 7"),
        pytest.param(
            "import sys\nprint('no licence', file=sys.stderr)\nos = 1\nimport os; os.abort()",
            "licence",
            marks=pytest.mark.thorough,
        ),
        ("\nraise RuntimeError('no')", "line 2: RuntimeError: no"),
    ],
)
def test_a_configuration_that_ends_its_process_ends_no_doctor(
    tmp_path: Path, lines: str, found: str
) -> None:
    (told,), context = loaded(tmp_path, lines)
    assert told.state == "failure"
    assert found in told.found
    assert context.configuration is None


def test_a_configuration_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "LOADING_SECONDS", 0.5)
    (told,), _ = loaded(tmp_path, "import time; time.sleep(100)")
    assert told.state == "failure"
    assert "isn't through" in told.found


def test_no_configuration_is_a_note_and_what_needs_one_is_skipped(tmp_path: Path) -> None:
    (told,) = configuration.configuration(Context(None, tmp_path))
    assert (told.state, told.blocks_others) == ("note", True)
    assert "-f" in told.advice


def test_a_configuration_that_asks_a_missing_engine_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    (told,), _ = loaded(tmp_path, "import docker; docker.from_env()")
    assert told.state == "skipped"
    assert "Docker Engine" in told.found


def test_a_configuration_finds_its_files_and_leaves_none(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "kept").write_text("64G")
    (tmp_path / "beside.py").write_text("c.GPUSpawner.gpu_limit = 7")
    lines = [
        "from pathlib import Path",
        "c.GPUSpawner.mem_limit = Path('kept').read_text()",
        "Path('made').write_text('secret')",
        "print('noise')",
        "load_subconfig(str(Path(__file__).parent / 'beside.py'))",
        "import sys; assert '' not in sys.path",
        "c.JupyterHub.spawner_class = 'gpu'",
    ]
    (told,), context = loaded(tmp_path, *lines)
    assert told.state == "ok", told
    assert context.configuration is not None
    assert context.configuration.spawner["mem_limit"] == 64 * 1024**3
    assert context.configuration.spawner["gpu_limit"] == 7
    assert [entry.name for entry in hub.iterdir()] == ["kept"]
    assert sorted(e.name for e in tmp_path.iterdir()) == [
        "beside.py",
        "hub",
        "jupyterhub_config.py",
    ]


def test_the_interpreter_is_the_hub_s(tmp_path: Path) -> None:
    (told,), _ = loaded(tmp_path, "import sys; raise ValueError(sys.executable)")
    assert sys.executable in told.found


SCOPES = "oauth_client_allowed_scopes"
DASHBOARD = """
c.JupyterHub.services = [
    {"name": "gpus", "url": "http://10.0.0.1:1", "command": %s},
    {"name": "other", "api_token": "x"},
]
"""


@pytest.mark.parametrize(
    ("command", "is_ours"),
    [
        (["python", "-m", "gpuspawner", "dashboard", "--names", "everybody"], True),
        ("gpuspawner dashboard", True),
        (["python", "-m", "gpuspawner", "gpus"], False),
        (["their-dashboard"], False),
    ],
)
@pytest.mark.parametrize("in_container", [True, False])
def test_a_dashboard_that_cannot_start_with_internal_ssl_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Any,
    is_ours: bool,
    in_container: bool,
) -> None:
    own = "5a" * 32 if in_container else ""
    monkeypatch.setattr(configuration_rules, "own_container_id", lambda: own)
    service = DASHBOARD % json.dumps(command)
    assert settings(tmp_path, service) == [Finding("ok", "nothing to change")]
    ssl = "c.JupyterHub.internal_ssl = True"
    told = [each.found for each in settings(tmp_path, service, ssl) if each.state == "failure"]
    assert all(each.startswith("c.JupyterHub.internal_ssl: ") for each in told)
    # A hub in a container can look its servers up.
    assert ["the dashboard" in each for each in told] == [False] * (not in_container) + [
        True
    ] * is_ours


@pytest.mark.parametrize(
    ("scopes", "knows"),
    [
        ([], False),
        (["delete:servers"], False),
        (["delete:servers", "read:users:groups"], True),
        (["read:users!user"], True),
    ],
)
def test_instructors_whom_the_dashboard_may_not_know_are_told(
    tmp_path: Path, scopes: list[str], knows: bool
) -> None:
    command = '["gpuspawner", "dashboard"]'
    service = (DASHBOARD % command).replace('"command"', f'"{SCOPES}": {scopes}, "command"')
    course = 'c.GPUSpawner.courses = {"ml": {"group": "ml", "instructors": "staff"}}'
    told = [each for each in settings(tmp_path, service, course) if each.state == "warning"]
    assert [SCOPES in each.advice for each in told] == [True] * (not knows)
    assert "c.GPUSpawner.courses (line " in "".join(each.found for each in told) or knows
    alone = course.replace(', "instructors": "staff"', "")
    assert [each for each in settings(tmp_path, service, alone) if each.state == "warning"] == []


TAUGHT = "ml: {group: ml, instructors: staff}\n"


def test_the_courses_file_is_read_as_the_hub_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "courses.yaml"
    line = 'c.GPUSpawner.courses_file = "courses.yaml"'

    def failures(text: str, *more: str) -> list[Finding]:
        file.write_text(text)
        return [each for each in settings(tmp_path, line, *more) if each.state == "failure"]

    assert failures(TAUGHT) == []
    (found,) = failures(f"{TAUGHT}cv: {{group: cv, gpus: 1}}\n")
    assert re.match(r"c\.GPUSpawner\.courses_file \(line \d+\): courses\.yaml", found.found)
    assert "line 2: course 'cv': gpus: there is no such key" in found.found
    (found,) = failures("ml: [")
    assert "courses.yaml" in found.found
    (found,) = failures(TAUGHT, 'c.GPUSpawner.courses = {"ml": {"group": "ml"}}')
    assert "is in c.GPUSpawner.courses as well" in found.found
    (found,) = failures("ml: {group: ml, calendar: {file: ml.ics, gpus: 1}}\n")
    assert "The calendar of course 'ml'" in found.found
    file.unlink()
    (found,) = (each for each in settings(tmp_path, line) if each.state == "failure")
    assert "courses.yaml" in found.found


def test_instructors_of_the_courses_file_are_told_of_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "courses.yaml").write_text(TAUGHT)
    service = (DASHBOARD % '["gpuspawner", "dashboard"]').replace(
        '"command"', f'"{SCOPES}": [], "command"'
    )
    found = settings(tmp_path, service, 'c.GPUSpawner.courses_file = "courses.yaml"')
    (told,) = (each for each in found if each.state == "warning")
    assert told.found.startswith("c.GPUSpawner.courses_file (line ")


HOURS = {"begin": "2030-10-02T10:00", "end": "12:00", "gpus": 4}


@pytest.mark.parametrize(
    ("course", "has"),
    [
        ({"reserved": [HOURS], "calendar": {"file": "ml.ics", "gpus": 4}}, False),
        ({"reserved": [HOURS | {"slots": 15}]}, True),
        ({"calendar": {"file": "ml.ics", "gpus": 4, "slots": 15}}, True),
    ],
)
def test_hours_with_slots_are_known_wherever_they_are_declared(
    tmp_path: Path, course: Any, has: bool
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    courses = {"ml": {"group": "ml", **course}}
    declared = read(tmp_path, f"c.GPUSpawner.courses = {courses!r}")
    # Beside the hub's database, where a hub that is started there finds it.
    (hub / "courses.yaml").write_text(json.dumps(courses))
    file = written(tmp_path, 'c.GPUSpawner.courses_file = "courses.yaml"')
    of_file = configuration.from_loaded(file, configuration.load(file, hub))
    assert declared.spawner["has_course_slots"] is of_file.spawner["has_course_slots"] is has
