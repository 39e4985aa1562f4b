"""Evaluation of a loaded configuration: the traits of spawner and hub, and invalid settings.

The results are JSON values, and only those that checks need: a configuration contains passwords.
"""

from __future__ import annotations

import difflib
import logging
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from typing import Any
from urllib.parse import urlparse

from jupyterhub.app import JupyterHub
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.objects import Hub
from jupyterhub.traitlets import ByteSpecification, EntryPointType
from traitlets import TraitError
from traitlets.config import Config

from ..backends.swarm.homes import homes_of, places
from ..base_spawner import BaseGPUSpawner
from ..images.catalogue import catalogue
from ..pages import TEMPLATES
from . import example_user, values
from .declared_courses import ADVICE, declared_courses
from .findings import NAME, NO_SUCH_USER

SPAWNER_VALUES = (
    "allowed_images",
    "allowed_kinds",
    "allowed_models",
    "allowed_versions",
    "check_in_minutes",
    "course_volumes",
    "cpu_guarantee",
    "cpu_limit",
    "default_gpus",
    "default_hours",
    "default_kind",
    "earlier_home_volumes",
    "environment",
    "allowed_devices",
    "excluded_gpus",
    "extra_create_kwargs",
    "extra_host_config",
    "foreign_memory",
    "gpu_injection",
    "gpu_limit",
    "gpu_policy",
    "group_overrides",
    "home_size",
    "home_volume",
    "host_ip",
    "hour_limit",
    "hub_connect_url",
    "log_driver",
    "log_options",
    "longest_wait_minutes",
    "mem_guarantee",
    "mem_limit",
    "mounts",
    "name_template",
    "network_name",
    "notify_urls",
    "prefix",
    "pull_policy",
    "pre_spawn_hook",
    "queue_length",
    "read_only_volumes",
    "shared_gpus",
    "remove",
    "shm_size",
    "ulimits",
    "use_internal_ip",
    "user_gpu_limit",
    "volumes",
)
# Functions that are called for the example user, as what they return has dangers of its own.
CALLED = ("extra_host_config", "extra_create_kwargs")
HUB_VALUES = (
    "active_server_limit",
    "concurrent_spawn_limit",
    "cookie_secret_file",
    "db_url",
    "internal_ssl",
    "subdomain_host",
)
# Sections that a misspelled one may mean.
USUAL_SECTIONS = (
    "GPUSpawner",
    "DockerSpawner",
    "Spawner",
    "JupyterHub",
    "Authenticator",
    "ConfigurableHTTPProxy",
)
# The names of log-ins that come with a package -> the package.
PACKAGES = {
    re.compile("^native(authenticator)?(\\W|$)"): "jupyterhub-nativeauthenticator",
    re.compile("^lti(13|11)?(authenticator)?(\\W|$)"): "jupyterhub-ltiauthenticator",
    re.compile("^ldap(authenticator)?(\\W|$)"): "jupyterhub-ldapauthenticator",
    re.compile(
        "^(local-)?(oauthenticator|auth0|azuread|bitbucket|cilogon|generic-oauth|github|gitlab|globus|"
        "google|okpy|openshift)(\\W|$)"
    ): "oauthenticator",
}
# What a hook may not be.
HOOKS = ("auth_state_hook", "post_stop_hook", "pre_spawn_hook", "progress_ready_hook")
SECRETS = ("secret", "password", "token", "key", "environment")


def describe(config: Config) -> dict[str, Any]:
    """Return what a configuration sets, without secrets, as a JSON value with the keys below."""
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)
    problems: list[dict[str, str]] = []
    hub = JupyterHub(config=_valid(JupyterHub, config, problems, {}))
    cls = _spawner_class(config, problems)
    place = _hub_place(hub)
    given = example_user.arguments(hub, place)
    valid = _valid(cls, config, problems, given)
    spawner = cls(config=valid, **given)
    problems += _unknown_sections(config, cls)
    problems += _overrides(cls, spawner.group_overrides, given)
    is_ours = issubclass(cls, BaseGPUSpawner)
    if is_ours:
        problems += [
            {"state": "failure", "found": sentence, "advice": "a hub with it doesn't start"}
            for sentence in spawner.refused_settings()
        ]
    known = {
        # A function may return something else for each user.
        name: each if callable(each := _set(cls, config, name)) else getattr(spawner, name, None)
        for name in SPAWNER_VALUES
    }
    called = {}
    for name in CALLED:
        function = known[name]
        if callable(function) and (result := example_user.returned(function, spawner)) is not None:
            called[name] = result
    return {
        "spawner_class": f"{cls.__module__}.{cls.__qualname__}",
        "is_ours": is_ours,
        "spawner": {
            **{name: json_value(value) for name, value in {**known, **called}.items()},
            **_of_swarm(spawner),
            **(_of_courses(cls, spawner, problems) if is_ours else {}),
        },
        "called": list(called),
        "plan": example_user.plan(cls, valid, given) if is_ours else {},
        "versions": _versions(spawner) if is_ours else {},
        "hub": {
            **{name: json_value(getattr(hub, name)) for name in HUB_VALUES},
            **_addresses(hub),
            "authenticator": _class_name(config.JupyterHub.get("authenticator_class", "")),
            **_allowed(hub.authenticator_class, config),
            "native_is_broken": _uses_what_is_gone(hub.authenticator_class),
            "dummy_password": bool(
                config.DummyAuthenticator.get("password")
                or config.SharedPasswordAuthenticator.get("user_password")
            ),
            "has_our_pages": TEMPLATES in hub.template_paths,
            **_dashboard(hub.services),
            "has_administrators": _has_administrators(config),
            "proxy": _class_name(config.JupyterHub.get("proxy_class", "")),
            "proxy_command": json_value(_proxy_command(config)),
            "proxy_is_started": config.ConfigurableHTTPProxy.get("should_start", True) is not False,
        },
        # In the order of precedence; the last one counts.
        "sections": {
            each.__name__: sorted(config[each.__name__])
            for each in reversed(cls.__mro__)
            if each.__name__ in config
        },
        "problems": problems,
    }


def _dashboard(services: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the hub starts our dashboard, and what users may do through it."""
    for service in services:
        command = service.get("command") or ()
        words = command.split() if isinstance(command, str) else command
        if {"gpuspawner", "dashboard"} <= {*map(str, words)}:
            scopes = service.get("oauth_client_allowed_scopes") or ()
            return {"has_dashboard": True, "dashboard_scopes": [*map(str, scopes)]}
    return {"has_dashboard": False, "dashboard_scopes": []}


def _set(cls: Any, config: Config, name: str) -> Any:
    """Return the value that a configuration sets for a trait; None if it doesn't set it."""
    sections = [each.__name__ for each in cls.__mro__ if each.__name__ in config]
    return next((config[each][name] for each in sections if name in config[each]), None)


def _spawner_class(config: Config, problems: list[dict[str, str]]) -> Any:
    wanted = config.JupyterHub.get("spawner_class")
    only = Config({"JupyterHub": {} if wanted is None else {"spawner_class": wanted}})
    try:
        return JupyterHub(config=only).spawner_class
    except Exception:
        what = f"c.JupyterHub.spawner_class: there is no spawner {_class_name(wanted)!r}"
        problems.append(_problem("failure", what, 'c.JupyterHub.spawner_class = "gpu"'))
        # The settings of our class are checked all the same.
        return JupyterHub(config=Config({"JupyterHub": {"spawner_class": "gpu"}})).spawner_class


def _valid(
    cls: Any, config: Config, problems: list[dict[str, str]], given: Mapping[str, Any]
) -> Config:
    """Return the settings that are valid for a class; add a problem for each other one.

    Args:
        cls: the class.
        config: the configuration.
        problems: the list to which problems are added.
        given: the arguments of an instance besides its configuration.
    """
    valid: dict[str, dict[str, Any]] = {}
    known = cls.class_traits(config=True)
    for section in (each.__name__ for each in cls.__mro__ if each.__name__ in config):
        for name, value in config[section].items():
            if isinstance(value, Config):
                continue
            if name not in known:
                problems.append(_unknown_name(section, name, cls, known))
                continue
            if (cls, name) == (JupyterHub, "spawner_class"):
                continue  # checked by itself
            if name in HOOKS and value is not None and not callable(value):
                what = f"c.{section}.{name}: it must be a function, not {values.shown(value)}"
                problems.append(_problem("failure", what, f"write c.{section}.{name} = its_name"))
                continue
            error = _refused(cls, section, name, value, given)
            if error is None:
                valid.setdefault(section, {})[name] = value
            else:
                setting = f"c.{section}.{name}"
                problems.append(_invalid(setting, known[name], value, error))
    return Config(valid)


def _refused(
    cls: Any, section: str, name: str, value: Any, given: Mapping[str, Any]
) -> Exception | None:
    """Return the error of a class for a value; None if it is valid."""
    try:
        getattr(cls(config=Config({section: {name: value}}), **given), name)
    except Exception as error:
        return error
    return None


def _unknown_name(section: str, name: str, cls: Any, known: Mapping[str, Any]) -> dict[str, str]:
    what = f"c.{section}.{name}: {cls.__name__} has no such setting, so the line has no effect"
    close = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean c.{section}.{close[0]}?" if close else "remove it"
    return _problem("failure", what, advice)


def _invalid(
    setting: str, trait: Any, value: Any, error: Exception, line: str = ""
) -> dict[str, str]:
    """Return the problem of an invalid value, in our words or in those of its validation.

    Args:
        setting: the setting's name, for the message.
        trait: the trait.
        value: the value.
        error: the error of the validation.
        line: how a value is set, up to the value; "" for an assignment.
    """
    if any(word in trait.name for word in SECRETS):
        return _problem("failure", f"{setting} has a value of a wrong kind", "")
    if callable(value) and values.takes_functions(trait) and isinstance(error, TraitError):
        # It takes functions, so this is about what this one returned.
        words, _ = values.expected(trait, functions=False)
        what = f"{setting} is a function that returns for a user {NAME!r} what it may not"
        return _problem("failure", f"{what}: {_text(error)}", f"return {words}")
    if callable(value) and values.takes_functions(trait):
        what = f"{setting} is a function, which fails for a user {NAME!r}"
        return _problem("note", f"{what}: {type(error).__name__}: {_text(error)}", NO_SUCH_USER)
    if isinstance(trait, EntryPointType):
        return _problem("failure", *_not_importable(setting, trait, value, error))
    text = _text(error)
    words, example = values.expected(trait)
    write = f"write {line or f'{setting} = '}{example}" if example else ""
    is_of_its_kind = not isinstance(error, TraitError) or _OF_TRAITLETS.match(text)
    if words and (is_of_its_kind or isinstance(trait, ByteSpecification)):
        what = f"{setting}: it must be {words}, not {values.shown(value)}"
        return _problem("failure", what, write)
    # Our own validation names the setting, the value and what to write.
    first, _, cure = _OF_TRAITLETS.sub("it", text).rstrip(".").partition(". ")
    first = first.removeprefix(f"{setting} = ")
    found = first if first.startswith(setting) else f"{setting}: {first}"
    # What is wrong in a part of it, its words say.
    rest = "" if found.startswith(f"{setting}[") else write
    advice = cure[:1].lower() + cure[1:] or rest
    return _problem("failure", found, advice)


def _not_importable(setting: str, trait: Any, value: Any, error: Exception) -> tuple[str, str]:
    """Return what is found of a class that can't be had, and what to do."""
    name = _class_name(value)
    what = f"{setting}: there is no {name!r} in {sys.prefix}"
    if not isinstance(value, str):
        return f"{setting}: {_text(error)}", ""
    module = name.rpartition(".")[0]
    with suppress(Exception):
        import_module(module or name)
        what = f"{setting}: there is no {name!r} in the module {module or name}"
    for names, package in PACKAGES.items():
        if names.search(name):
            return what, f"{sys.executable} -m pip install {package}"
    close = difflib.get_close_matches(name, trait.load_entry_points(), 1, cutoff=0.5)
    return what, f'write {setting} = "{close[0]}"' if close else "install its package"


# "The 'x' trait of a Y instance expected an int", "The value of the 'x' trait of … should not …",
# "Values of the 'x' trait …", "Element of the 'x' trait …".
_OF_TRAITLETS = re.compile(
    r"(?:The |Values of the |Keys of the |Element(?: \d+)? of the |The value of the )"
    r"'\w+' trait of an? \w+ instance"
)


def _of_swarm(spawner: Any) -> dict[str, Any]:
    """Return where users' files are, if servers are services of a Swarm; else {}."""
    if not spawner.has_trait("shared_homes"):
        return {}
    found = homes_of(spawner)
    shared = []
    with suppress(Exception):  # of a template or a function, which `plan` tells of
        shared = [] if found.local else [asdict(each) for each in places(spawner)]
    return {"homes": {"local": found.local, "why": found.why, "places": shared}}


def _of_courses(cls: Any, spawner: Any, problems: list[dict[str, str]]) -> dict[str, Any]:
    """Return what rules need to know of the courses; add what is wrong in their files."""
    courses = declared_courses(spawner)
    for each in courses.problems:
        where = "courses_file" if spawner.courses_file else "courses"
        problems.append(_problem("failure", f"c.{cls.__name__}.{where}: {each}", ADVICE))
    return {"taught_by": courses.taught, "has_course_slots": courses.has_slots}


def _unknown_sections(config: Config, cls: Any) -> Iterator[dict[str, str]]:
    read = {each.__name__ for each in cls.__mro__}
    for section in config:
        if section in read or section in USUAL_SECTIONS or not config[section]:
            continue
        usual = {name.casefold(): name for name in USUAL_SECTIONS}
        close = difflib.get_close_matches(section.casefold(), usual, 1, cutoff=0.85)
        # Each authenticator class has a section of its own.
        if close and not section.endswith("Authenticator"):
            first = next(iter(config[section]))
            what = f"c.{section}.{first}: c.{section} is nobody's, so its lines have no effect"
            yield _problem("failure", what, f"write c.{usual[close[0]]}")
        elif section.endswith("Spawner"):
            what = f"c.{section} has no effect: servers are made by {cls.__name__}"
            yield _problem("note", what, f"write c.{cls.__name__}, or remove its lines")
    if not issubclass(cls, BaseGPUSpawner) and "GPUSpawner" in config:
        what = f"c.GPUSpawner has no effect: servers are made by {cls.__name__}"
        yield _problem("note", what, 'c.JupyterHub.spawner_class = "gpu"')


def _overrides(cls: Any, overrides: Any, given: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the problems of `group_overrides`, which JupyterHub checks only at a member's start."""
    if not isinstance(overrides, Mapping):
        return  # a function
    known = cls.class_traits()
    for key, entry in overrides.items():
        where = f"c.Spawner.group_overrides[{key!r}]"
        if not isinstance(entry, Mapping) or not {"groups", "spawner_override"} <= set(entry):
            shape = '{"groups": ["lab"], "spawner_override": {"gpu_limit": 4}}'
            yield _problem("failure", f"{where} lacks groups or spawner_override", f"write {shape}")
            continue
        if isinstance(entry["groups"], str):
            fixed = f'"groups": [{entry["groups"]!r}]'
            yield _problem("failure", f"{where}: groups must be a list", f"write {fixed}")
        override = entry["spawner_override"]
        for name, value in override.items() if isinstance(override, Mapping) else ():
            setting = f"{where}: {name}"
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                what = f"{setting}: {cls.__name__} has no such setting, so it has no effect"
                advice = f"did you mean {close[0]!r}?" if close else "remove it"
                yield _problem("failure", what, advice)
            elif not callable(value):
                error = _refused(cls, cls.__name__, name, value, given)
                if error is not None:
                    line = f"{values.written(name)}: "
                    yield _invalid(setting, known[name], value, error, line)


def _versions(spawner: Any) -> dict[str, Any]:
    with suppress(Exception):  # a function of the administrator's that needs a user
        # `images` first, since an allow-list may leave some of its versions out.
        known = catalogue(spawner.images) or spawner.limits().versions
        return {key: version.model_dump(mode="json") for key, version in known.items()}
    return {}


def _addresses(hub: Any) -> dict[str, Any]:
    """Return the (ip, port) at which a hub would listen, and that at which servers reach it.

    ref: JupyterHub.init_hub
    """
    if hub.hub_bind_url.startswith("unix+"):
        return {"listens": None, "connects": _place(hub.hub_connect_url)}
    place = _hub_place(hub)
    return {"listens": [place.ip, place.port], "connects": _place(place.api_url)}


def _hub_place(hub: Any) -> Hub:
    if hub.hub_bind_url:
        place = Hub(bind_url=hub.hub_bind_url, base_url=hub.hub_prefix)
    else:
        place = Hub(ip=hub.hub_ip, port=hub.hub_port, base_url=hub.hub_prefix)
    if hub.hub_connect_ip:
        place.connect_ip = hub.hub_connect_ip
    if hub.hub_connect_url:
        place.connect_url = hub.hub_connect_url
    return place


def _place(url: str) -> list[Any] | None:
    parts = urlparse(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return [parts.hostname or socket.gethostname(), port] if url else None


def _has_administrators(config: Config) -> bool:
    """Return whether the configuration has administrators, who may open all servers."""
    return any(
        config[section].get(name)
        for section in config
        if section.endswith("Authenticator")
        for name in ("admin_users", "admin_groups")
    )


def _allowed(authenticator: Any, config: Config) -> dict[str, Any]:
    """Return the settings that let everybody log in, and those that say who may."""
    sections = [each.__name__ for each in authenticator.__mro__ if each.__name__ in config]
    told = {
        name: f"c.{section}.{name}"
        for section in reversed(sections)
        for name, value in config[section].items()
        if value and not isinstance(value, Config)
    }
    first = next((s for s in sections if "allow_all" in config[s]), None)
    return {
        "allows_all": f"c.{first}.allow_all"
        if first and config[first]["allow_all"] is True
        else "",
        "allowed_lists": [told[name] for name in sorted(told) if name.startswith("allowed_")],
    }


def _proxy_command(config: Config) -> Any:
    usual = ["configurable-http-proxy"]
    command = config.ConfigurableHTTPProxy.get("command") or usual
    if hasattr(command, "get_value"):  # an addition to the default, as `c.…command.append()`
        command = command.get_value(usual)
    return [command] if isinstance(command, str) else list(command)


def _uses_what_is_gone(authenticator: Any) -> bool:
    """Return whether an authenticator's log-in page needs a part that JupyterHub has removed.

    NativeAuthenticator 1.3.0 does with JupyterHub 6.
    """
    module = sys.modules.get(f"{authenticator.__module__.rpartition('.')[0]}.handlers")
    post = getattr(getattr(module, "LoginHandler", None), "post", None)
    code = getattr(post, "__code__", None)
    return bool(code and "statsd" in code.co_names and not hasattr(BaseHandler, "statsd"))


def _class_name(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def json_value(value: Any) -> Any:
    """Return a value as JSON has it; for other values, a description."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(each) for each in value]
    return {"function" if callable(value) else "other": type(value).__name__}


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _problem(state: str, found: str, advice: str) -> dict[str, str]:
    return {"state": state, "found": found, "advice": advice}
