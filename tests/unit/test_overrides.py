"""Group overrides that are wrong: named, and nothing of them left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tornado import web
from traitlets.config import Config

from gpuspawner.spawner import GPUSpawner


def in_group(**overrides) -> GPUSpawner:
    """Return the spawner of a user in the group "lab", with an override for it."""
    user = SimpleNamespace(name="ada", groups=[SimpleNamespace(name="lab")])
    override = {"for the lab": {"groups": ["lab"], "spawner_override": overrides}}
    images = {"torch": {"image": "lab/torch", "title": "PyTorch"}}
    traits = {"gpu_limit": 1, "images": images, "default_gpus": 1}
    config = Config({"GPUSpawner": traits, "Spawner": {"group_overrides": override}})
    return GPUSpawner(user=user, config=config)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"gpu_limit": "four"}, "gpu_limit"),
        ({"default_gpus": 0, "gpu_limit": -1}, "gpu_limit"),
        ({"gpu_policy": "random"}, "gpu_policy"),
        ({"gpu_limit": lambda spawner: spawner.no_such_thing}, "gpu_limit: "),
        ({"images": {"torch": {"cudda": "12"}}}, "c.GPUSpawner.images['torch']: cudda"),
        (
            {"images": {"torch": None, "own": {"title": "x"}}},
            "images['own']: image: Field required",
        ),
        ({"course_volumes": {"ml": {"path": "course"}}}, "course_volumes['ml']: 'path' must be"),
    ],
)
async def test_an_override_that_cannot_be_applied_is_named_and_leaves_nothing(overrides, says):
    one = in_group(**overrides)
    with pytest.raises(web.HTTPError) as error:
        await one.apply_group_overrides()
    sentence = error.value.jupyterhub_message
    assert sentence.startswith("c.Spawner.group_overrides['for the lab'] can't be applied: ")
    assert says in sentence
    assert sentence.endswith(". Please tell an administrator.")
    assert (one.gpu_limit, one.default_gpus) == (1, 1)
    assert list(one.limits().versions) == ["torch"]
    assert one.limits().versions["torch"].title == "PyTorch"


async def test_an_override_may_add_and_hide_versions_and_be_a_function():
    one = in_group(
        images={"own": {"image": "lab/own"}, "torch": {"title": "Ours"}},
        gpu_limit=lambda spawner: len(spawner.user.name),
    )
    await one.apply_group_overrides()
    assert one.gpu_limit == 3
    assert [v.title for v in one.limits().versions.values()] == ["Ours", "own"]
    one.user.groups = []
    await one.apply_group_overrides()
    assert (one.gpu_limit, list(one.limits().versions)) == (1, ["torch"])


async def test_overrides_that_a_function_makes_are_named_by_their_trait():
    one = in_group()
    one.group_overrides = lambda spawner: {
        "lab": {"groups": ["lab"], "spawner_override": {"gpu_limit": "four"}}
    }
    with pytest.raises(web.HTTPError, match="gpu_limit"):
        await one.apply_group_overrides()


async def test_what_a_group_may_have_is_nobody_else_s():
    one, other = in_group(allowed_images={"secret": "lab/secret"}), in_group()
    other.user.groups = []
    await one.apply_group_overrides()
    await other.apply_group_overrides()
    assert one.allowed_images == {"secret": "lab/secret"}
    assert not other.allowed_images
    assert not GPUSpawner().allowed_images


async def test_an_override_s_own_value_stays_what_it_is_where_a_hook_adds_to_it():
    one = in_group(args=["--lab"], environment={"LAB": {}})
    override = one.group_overrides["for the lab"]["spawner_override"]
    for _ in range(2):
        await one.apply_group_overrides()
        one.args.append("--hook")
        one.environment["LAB"]["HOOK"] = "1"
    assert override == {"args": ["--lab"], "environment": {"LAB": {}}}


async def test_a_default_that_was_made_of_an_override_s_value_ends_with_it():
    one = in_group(network_name="lab")
    await one.apply_group_overrides()
    assert one.use_internal_ip  # DockerSpawner makes it of network_name
    one.user.groups = []
    await one.apply_group_overrides()
    assert not one.use_internal_ip
