"""What an administrator's hooks, group overrides and configuration set, in every order of events.

Each way that a spawn can go must leave every trait as it is where it starts at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.traitlets import ByteSpecification, Command
from traitlets import Bool, Dict, Enum, Float, Int, List, Unicode

from gpuspawner.base_spawner import STATE_KEY
from gpuspawner.group_overrides import copied
from gpuspawner.hub.spawn_form import SpawnForm
from gpuspawner.spawner import GPUSpawner

from ..support.spawns import Hub, Spawner, begin, lab, waiting

# Hooks themselves, and what JupyterHub and DockerSpawner have given another name.
NOT_SET_BY_HOOKS = {
    "apply_user_options": "a hook",
    "auth_state_hook": "a hook",
    "group_overrides": "a hook",
    "options_form": "a hook",
    "options_from_form": "a hook",
    "post_stop_hook": "a hook",
    "pre_spawn_hook": "a hook",
    "progress_ready_hook": "a hook",
    "container_image": "is `image`",
    "container_ip": "is `host_ip`",
    "container_port": "is `port`",
    "container_prefix": "is `prefix`",
    "container_name_template": "is `name_template`",
    "image_whitelist": "is `allowed_images`",
    "remove_containers": "is `remove`",
    "use_docker_client_env": "DockerSpawner fails where it is set",
    **dict.fromkeys(
        ("tls", "tls_assert_hostname", "tls_ca", "tls_cert", "tls_key", "tls_verify"),
        "is a part of `tls_config`",
    ),
}
# Where its type doesn't tell: what an override sets and what a hook sets. A request for one GPU of
# the version "plain" can be granted under each.
VALUES: dict[str, tuple[Any, Any]] = {
    "allowed_images": ({"plain": "ref/override"}, {"plain": "ref/hook"}),
    "allowed_kinds": (["gpu", "shared"], ["gpu"]),
    "allowed_models": (["A100", "H100"], ["A100"]),
    "allowed_versions": (["plain", "secret"], ["plain"]),
    "course_volumes": (
        {"o": {"path": "/o", "instructors": []}},
        {"h": {"path": "/h", "instructors": []}},
    ),
    "courses": ({"o": {"group": "o"}}, {"h": {"group": "h"}}),
    "earlier_home_volumes": ({"o-{username}": "/o"}, {"h-{username}": "/h"}),
    "escape": (str.lower, str.upper),
    "extra_create_kwargs": ({"o": "1"}, {"h": "1"}),
    "extra_host_config": ({"o": "1"}, {"h": "1"}),
    "format_volume_name": (str.lower, str.upper),
    "group_gpu_limits": ({"lab": 3}, {"lab": 2}),
    "gpu_hours": (
        {"o": {"hours": 9, "days": 1}},
        {"h": {"hours": 9, "days": 1, "together": True}},
    ),
    "home_volume": ("override-{username}", "hook-{username}"),
    "image": ("override", "hook"),
    "images": ({"o": {"image": "o"}}, {"h": {"image": "h"}}),
    "notify_urls": (["json://o"], ["json://h"]),
    "oauth_client_allowed_scopes": (["o"], ["h"]),
    "oauth_roles": (["o"], ["h"]),
    "server_token_scopes": (["o"], ["h"]),
    "poll_jitter": (0.3, 0.2),
    "ssl_alt_names": (["o"], ["h"]),
    "tls_config": ({"o": "1"}, {"h": "1"}),
    "mem_limit": (2 << 30, 3 << 30),
    "cpu_limit": (2.0, 3.0),
    "share_weights": ({"o": 2}, {"h": 3}),
    "shared_gpus": ({"o": 1}, {"h": 2}),
    "ulimits": ({"o": 1}, {"h": 2}),
    "usage_db": ("sqlite:///override", "sqlite:///hook"),
}

# What a hook sets as a whole; the default of the first is one object for all spawners.
ASSIGNED = ("allowed_images", "cmd", "ssl_alt_names")


def values(name: str, trait: Any) -> tuple[Any, Any]:
    """Return what an override sets and what a hook sets."""
    if name in VALUES:
        return VALUES[name]
    if isinstance(trait, Bool):
        # Of two there is one that isn't the default.
        return trait.default_value, not trait.default_value
    if isinstance(trait, Enum):
        return trait.values[0], trait.values[-1]
    if isinstance(trait, ByteSpecification):
        return 2 << 30, 3 << 30
    if isinstance(trait, Int | Float):
        return 3, 2
    if isinstance(trait, Dict):
        return {"o": "1", "both": "o"}, {"h": "1", "both": "h"}
    if isinstance(trait, Command | List):
        return ["o"], ["h"]
    assert isinstance(trait, Unicode), f"{name}: what would a hook set?"
    return "override", "hook"


TABLE = {
    name: values(name, trait)
    for name, trait in GPUSpawner.class_traits(config=True).items()
    if name not in NOT_SET_BY_HOOKS
}
# Of an override JupyterHub calls what can be called.
OVERRIDES = {name: lambda spawner, value=value: value for name, (value, _) in TABLE.items()}


def set_all(spawner: Any, *_: Any) -> None:
    """Set every trait, as a hook does: of a mapping some keys, of a list what comes last."""
    for name, (override, value) in TABLE.items():
        now = getattr(spawner, name)
        if isinstance(now, dict) and isinstance(value, dict) and name not in ASSIGNED:
            now.update(copied(value))
        elif isinstance(now, list) and name not in ASSIGNED and not set(override) & set(value):
            now.extend(each for each in value if each not in now)
        else:
            setattr(spawner, name, copied(value))


def with_authenticator(one: Spawner) -> None:
    one.authenticator = SimpleNamespace(pre_spawn_start=lambda user, spawner: set_all(spawner))


HOOKS: dict[str, Callable[[Spawner], None]] = {
    "none": lambda one: None,
    "pre_spawn_start": with_authenticator,
    "auth_state_hook": lambda one: setattr(one, "auth_state_hook", set_all),
    "apply_user_options": lambda one: setattr(one, "apply_user_options", set_all),
    "pre_spawn_hook": lambda one: setattr(one, "pre_spawn_hook", set_all),
}
LATER = ("apply_user_options", "pre_spawn_hook")


def spawner(hub: Hub, hook: str, groups: tuple[str, ...]) -> Spawner:
    one = hub.spawner(groups)
    one.group_overrides = lab(**OVERRIDES)
    HOOKS[hook](one)
    return one


def put(one: Spawner, *groups: str) -> None:
    """Put a user into groups, and out of others."""
    one.user.groups = [SimpleNamespace(name=each) for each in groups]


def state(one: Spawner) -> dict[str, Any]:
    return {name: getattr(one, name) for name in TABLE}


async def at_once(hook: str, groups: tuple[str, ...]) -> dict[str, Any]:
    """Return how everything is where a server starts at once."""
    hub = Hub()
    one = spawner(hub, hook, groups)
    await begin(one, gpus=1, image="plain")
    await one.run_pre_spawn_hook()
    assert hub.held() == 1
    return state(one)


async def waited(one: Spawner, hub: Hub, *, then: tuple[str, ...]) -> None:
    hub.occupy()
    await begin(one, gpus=1, image="plain")
    task = await waiting(one, hub)
    put(one, *then)
    hub.free_all()
    await task


async def retried(one: Spawner, hub: Hub, *, then: tuple[str, ...]) -> None:
    """Wait, lose what was granted to another hub, and wait once more; each time groups change."""
    await waited(one, hub, then=() if then else ("lab",))
    hub.ledger.release(await one.reserve_gpus())
    hub.occupy()
    task = asyncio.ensure_future(one.reserve_gpus())
    await told(hub)
    put(one, *then)
    hub.free_all()
    await task


async def seen_in_between(one: Spawner, hub: Hub, *, then: tuple[str, ...]) -> None:
    """Wait while the hub makes a form of this spawner: a named server's choice was refused."""
    hub.occupy()
    one._spawn_pending = True
    await begin(one, gpus=1, image="plain")
    task = await waiting(one, hub)
    await SpawnForm(one).applicant()
    put(one, *then)
    await SpawnForm(one).applicant()
    hub.free_all()
    await task


async def after_the_form(one: Spawner, hub: Hub, *, then: tuple[str, ...]) -> None:
    """Open the form, for which JupyterHub runs a hook as well, and then start."""
    await one.run_auth_state_hook(None)
    await SpawnForm(one).applicant()
    put(one, *then)
    await begin(one, gpus=1, image="plain")
    await one.run_pre_spawn_hook()


async def once_more(one: Spawner, hub: Hub, *, then: tuple[str, ...]) -> None:
    """Start, give up, and start with the same object."""
    await begin(one, gpus=1, image="plain")
    await one.run_pre_spawn_hook()
    one.clear_state()
    put(one, *then)
    await begin(one, gpus=1, image="plain")
    await one.run_pre_spawn_hook()


async def test_a_hook_s_rules_hold_for_a_server_that_a_restarted_hub_finds() -> None:
    for hook in HOOKS:
        hub = Hub()
        one = spawner(hub, hook, ("lab",))
        await begin(one, gpus=1, image="plain")
        await one.run_pre_spawn_hook()
        one.lease.hold(one.attempt.granted.units)
        kept = json.loads(json.dumps(one.get_state()))
        restarted = spawner(hub, hook, ("lab",))
        restarted.load_state(kept)
        # What one more restart finds before anybody needs the rules, and after.
        assert restarted.get_state()[STATE_KEY]["hooks"] == kept[STATE_KEY]["hooks"], hook
        await restarted.ensure_rules_applied()
        assert restarted.get_state()[STATE_KEY]["hooks"] == kept[STATE_KEY]["hooks"], hook
        counts = one.traits(config=True, while_running=True)
        assert {"hour_limit", "idle_minutes", "remove"} <= counts.keys()
        assert {n: getattr(restarted, n) for n in counts} == {n: getattr(one, n) for n in counts}


async def test_a_rule_that_a_left_group_gave_a_running_server_ends_with_a_restart() -> None:
    hub = Hub()
    one = spawner(hub, "pre_spawn_hook", ("lab",))
    await begin(one, gpus=1, image="plain")
    one.lease.hold(["GPU-0"])
    kept = json.loads(json.dumps(one.get_state()))
    restarted = spawner(hub, "pre_spawn_hook", ())
    restarted.load_state(kept)
    await restarted.ensure_rules_applied()
    assert one.hour_limit == TABLE["hour_limit"][0]
    assert restarted.hour_limit is None


async def no_container(spawner: Any) -> None:
    """Have nothing to stop or remove in the engine."""


async def test_post_stop_hook_sees_what_the_spawn_had_set(monkeypatch) -> None:
    seen: list[Any] = []
    one = spawner(Hub(), "pre_spawn_hook", ("lab",))
    one.post_stop_hook = lambda spawner: seen.append((spawner.image, spawner.environment["both"]))
    await begin(one, gpus=1, image="plain")
    await one.run_pre_spawn_hook()
    monkeypatch.setattr(type(one), "stop_object", no_container)
    monkeypatch.setattr(type(one), "remove_object", no_container)
    await one.stop()
    one.post_stop_hook(one)
    one.clear_state()
    assert seen == [("hook", "h")]
    assert one.image != "hook"


@pytest.mark.parametrize("when", ["stop_object", "remove_object"])
async def test_a_stop_leaves_the_next_start_alone_where_the_hub_has_seen_the_end(
    monkeypatch, when: str
) -> None:
    """The hub looks whether servers run, cleans up, and the user may start the next one."""
    removed: list[str] = []

    async def meanwhile(one: Any) -> None:
        if when == "remove_object":
            removed.append(one.object_id)
        one.clear_state()
        one.object_id = "the next one"

    async def remove(one: Any) -> None:
        removed.append(one.object_id)

    one = spawner(Hub(), "pre_spawn_hook", ())
    monkeypatch.setattr(type(one), "stop_object", no_container)
    monkeypatch.setattr(type(one), "remove_object", remove)
    monkeypatch.setattr(type(one), when, meanwhile)
    one.object_id = "this one"
    await one.stop()
    assert one.object_id == "the next one"
    assert removed == ["this one"] * (when == "remove_object")


async def test_a_stop_goes_well_where_the_hub_has_cleaned_up_meanwhile(monkeypatch) -> None:
    """Between the hub's cleanup and the end of what it does after it, the state is there still."""
    removed: list[str] = []

    async def cleaned_up(one: Any) -> None:
        one.object_id = ""

    async def remove(one: Any) -> None:
        removed.append(one.object_id)

    one = spawner(Hub(), "pre_spawn_hook", ())
    monkeypatch.setattr(type(one), "stop_object", cleaned_up)
    monkeypatch.setattr(type(one), "remove_object", remove)
    one.object_id = "this one"
    await one.stop()
    assert removed == []


async def told(hub: Hub) -> None:
    for _ in range(50):
        await asyncio.sleep(0)
    assert hub.queue.waiting


@pytest.mark.parametrize("groups", [(), ("lab",)], ids=["none", "lab"])
@pytest.mark.parametrize("then", [(), ("lab",)], ids=["then-none", "then-lab"])
@pytest.mark.parametrize(
    "way",
    [waited, retried, seen_in_between, after_the_form, once_more],
    ids=lambda way: way.__name__,
)
@pytest.mark.parametrize("hook", HOOKS)
async def test_every_trait_is_as_where_a_server_starts_at_once(hook, way, groups, then):
    hub = Hub()
    one = spawner(hub, hook, groups)
    await way(one, hub, then=then)
    expected = await at_once(hook, then)
    now = state(one)
    assert {n: (now[n], expected[n]) for n in TABLE if now[n] != expected[n]} == {}
