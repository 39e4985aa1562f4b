"""What a hub on a Docker Swarm doesn't start with, and how it keeps what is out of service."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from tornado import web
from traitlets.config import Config

from gpuspawner.backends.swarm import errors
from gpuspawner.backends.swarm.cluster import EngineTooOld
from gpuspawner.backends.swarm.out_of_service import name_of, parse_marks
from gpuspawner.backends.swarm.refusals import ONLY
from gpuspawner.hub.state import build_at_start
from gpuspawner.nodes.resources import kind_of
from gpuspawner.spawner import GPUSpawner
from gpuspawner.swarm_spawner import GPUSwarmSpawner

HOURS = {"begin": "2026-10-05T10:00", "end": "12:00", "gpus": 4}
UUID = "GPU-01b2c3d4-0000-0000-0000-000000000000"


def refused(**traits: Any) -> list[str]:
    """The sentences about a configuration."""
    settings = {"network_name": "gpuspawner", **traits}
    return list(GPUSwarmSpawner(config=Config(GPUSwarmSpawner=settings)).refused_settings())


def test_what_most_hubs_have_is_carried():
    host = {
        "cap_drop": ["ALL"],
        "pids_limit": 500,
        "security_opt": ["no-new-privileges"],
        "extra_hosts": {"nas": "10.0.0.9"},
        "init": True,
    }
    assert refused() == []
    assert (
        refused(mem_limit="8G", cpu_limit=2, extra_host_config=host, home_volume="h-{username}")
        == []
    )
    assert refused(extra_host_config=lambda spawner: {"privileged": True}) == []
    whole = {"group": "g", "reserved": [{**HOURS, "slots": 0}]}
    assert refused(courses={"ml": whole}) == []
    nfs = {"device": ":/homes/{volume}"}
    assert refused(volume_driver="local", volume_driver_options=nfs) == []
    assert refused(volume_driver="rexray", volume_driver_options={"size": "10"}) == []


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({"gpu_injection": "cdi"}, "c.GPUSwarmSpawner.gpu_injection = 'cdi' can't be had"),
        ({"remove": False}, "remove = False can't be had"),
        ({"home_size": "10G"}, "home_size"),
        ({"deleted_user_volumes": "remove"}, "deleted_user_volumes = 'remove'"),
        ({"earlier_home_volumes": {"v-{username}": "/w"}}, "earlier_home_volumes"),
        ({"post_start_cmd": "true"}, "post_start_cmd = 'true'"),
        ({"links": {"db": "db"}}, "links"),
        ({"use_internal_ip": False}, "use_internal_ip = False"),
        ({"allowed_devices": ["a.b/c=*"]}, "allowed_devices"),
        ({"network_name": "bridge"}, "docker network create --driver overlay --attachable"),
        ({"extra_host_config": {"privileged": True}}, "extra_host_config: a Swarm service can't"),
        ({"extra_host_config": {"no_such": 1}}, "extra_host_config: TypeError"),
        ({"extra_create_kwargs": {"mac_address": "1"}}, "extra_create_kwargs: a Swarm service"),
        ({"volume_driver_options": {"device": ":/homes"}}, "would have the others' files"),
        (
            {"courses": {"ml": {"group": "g", "reserved": [{**HOURS, "slots": 15}]}}},
            "c.GPUSwarmSpawner.courses: 'ml' reserved.0 with slots can't be had on Docker Swarm",
        ),
        (
            {
                "courses": {
                    "ml": {"group": "g", "calendar": {"file": "x.ics", "gpus": 1, "slots": 2}}
                }
            },
            "c.GPUSwarmSpawner.courses: 'ml' calendar with slots can't be had on Docker Swarm",
        ),
    ],
)
def test_what_a_service_can_not_carry_is_named(traits, words):
    assert any(words in sentence for sentence in refused(**traits)), refused(**traits)


def test_a_hub_whose_servers_have_certificates_is_none_on_a_swarm():
    spawner = GPUSwarmSpawner(internal_ssl=True)
    assert any("c.JupyterHub.internal_ssl = True" in each for each in spawner.refused_settings())


def test_each_of_these_traits_is_there_with_a_default_that_is_carried():
    spawner = GPUSwarmSpawner()
    for name, (value, _) in ONLY.items():
        assert name == "use_internal_ip" or getattr(spawner, name) in (value, False, None), name
    assert refused() == []


def test_a_hub_does_not_start_with_one():
    said, left = [], []

    class Left(Exception):
        pass

    def leave(status: int) -> None:
        left.append(status)
        raise Left

    app = SimpleNamespace(
        tornado_settings={
            "spawner_class": GPUSwarmSpawner,
            "config": Config(GPUSwarmSpawner={"network_name": "net", "remove": False}),
        },
        hub=None,
        log=SimpleNamespace(critical=lambda *words: said.append(words[0] % words[1:])),
        exit=leave,
        tornado_application=web.Application(),
        hub_prefix="/hub/",
    )
    with pytest.raises(Left):
        build_at_start(app)
    assert left == [1]
    assert "remove = False can't be had on Docker Swarm" in said[0]


def test_both_spawners_are_siblings_with_the_same_traits():
    assert not issubclass(GPUSwarmSpawner, GPUSpawner)
    ours, theirs = (set(each.class_traits(config=True)) for each in (GPUSwarmSpawner, GPUSpawner))
    assert ours - theirs == {
        "nodes_folder",
        "shared_homes",
        "volume_driver",
        "volume_driver_options",
    }
    assert theirs - ours == set()


# -- What is out of service ----------------------------------------------------------------------


def config(name: str, **labels: Any) -> dict[str, Any]:
    """A config of the Swarm."""
    return {"ID": "c1", "Spec": {"Name": name, "Labels": labels}}


def test_a_config_takes_its_gpu_out_of_service_also_one_made_by_hand():
    old = "MIG-GPU-01b2c3d4-0000-0000-0000-000000000000/1/0"
    for uuid in (UUID, old):
        assert len(name_of(uuid)) <= 64
        assert set(parse_marks([config(name_of(uuid))])) == {uuid}
    labels = {
        "gpuspawner.out-of-service": UUID,
        "gpuspawner.out-of-service.by": "root",
        "gpuspawner.out-of-service.why": "fan",
        "gpuspawner.out-of-service.since": "1900000000",
    }
    (mark,) = parse_marks([config(name_of(UUID), **labels)]).values()
    assert (mark.by, mark.why, mark.since) == ("root", "fan", 1.9e9)
    both = parse_marks([config(f"gpuspawner-off-{kind_of(old)}", **labels)])
    assert set(both) == {UUID, old}
    assert parse_marks([config("somebody-s", **labels), {}, {"Spec": None}]) == {}
    assert parse_marks(None) == {}


# -- Errors ----------------------------------------------------------------------------------------


def test_an_engine_that_is_too_old_is_the_reason_that_users_read():
    said = errors.explain_unknown(EngineTooOld("one", "24.0.7"))
    assert "24.0.7" in said
    assert "25.0.3" in said


@pytest.mark.parametrize(
    "words",
    [
        "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that "
        "too few managers are online.",
        "rpc error: code = Unknown desc = raft: failed to process the request: node lost leader "
        "status",
        "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
    ],
)
def test_what_too_few_managers_could_decide_on_is_said_so_whoever_of_them_is_asked(words) -> None:
    error = docker.errors.APIError("500 Server Error", explanation=words)
    assert "The Swarm has no leader: too few of its managers answer" in errors.explain(error)
