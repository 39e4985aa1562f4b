"""The traits: what an administrator writes wrong is named, and nothing of one spawn stays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from traitlets import TraitError
from traitlets.config import Config

from gpuspawner.spawner import GPUSpawner


def spawner(**traits) -> GPUSpawner:
    """Return a user's spawner with these traits in its configuration, without a hub."""
    user = SimpleNamespace(name="ada", groups=[])
    return GPUSpawner(user=user, config=Config({"GPUSpawner": traits}))


@pytest.mark.parametrize(
    ("trait", "value", "says"),
    [
        ("images", {"a": {"imag": "x"}}, "c.GPUSpawner.images['a']: image"),
        ("images", {"a": {"image": "x", "cudda": "1"}}, "c.GPUSpawner.images['a']: cudda"),
        ("images", {"a": {"image": "x", "min_driver": "new"}}, "images['a']: min_driver"),
        ("home_volume", "{raw_username}", "{raw_username} isn't escaped"),
        ("home_volume", "everybody", "without {username}"),
        ("home_volume", "/home/{username}", "name a volume, not a folder"),
        ("course_volumes", {"c": {"path": "course"}}, "course_volumes['c']: 'path' must be"),
        ("course_volumes", {"c": {"path": "/c", "teachers": []}}, "'teachers' is neither"),
        ("gpu_limit", -1, "gpu_limit"),
        ("gpu_limit", "2", "gpu_limit"),
        ("default_gpus", 1.5, "default_gpus"),
        ("gpu_policy", "random", "gpu_policy"),
        ("ulimits", {"memlock": "max"}, "ulimits['memlock'] must be a whole number"),
        ("ulimits", {"stack": True}, "ulimits['stack'] must be a whole number"),
        ("shm_size", "8 gigs", "8 gigs"),
        ("excluded_gpus", 7, "excluded_gpus"),
        ("hour_limit", 0, "hour_limit must be more than 0"),
        ("default_hours", float("nan"), "default_hours must be more than 0"),
        ("default_hours", 1e9, "at most 87600"),
    ],
)
def test_a_mistake_is_named_with_trait_and_value(trait, value, says):
    with pytest.raises(TraitError) as error:
        spawner(**{trait: value})
    assert says in str(error.value)


def test_a_trait_that_one_spawn_replaced_is_put_back():
    one = spawner(image="configured:1")
    one.overrides.choose("image", "chosen:1")
    one.overrides.choose("image", "chosen:2")
    assert one.image == "chosen:2"
    one.clear_state()
    assert one.image == "configured:1"


def test_group_overrides_end_with_the_membership():
    one = spawner(gpu_limit=1, environment={"KEPT": "1"})
    one.overrides.apply([{"gpu_limit": 4, "environment": {"COURSE": "ml"}}])
    assert one.gpu_limit == 4
    assert one.environment == {"KEPT": "1", "COURSE": "ml"}
    one.overrides.put_back()
    assert one.gpu_limit == 1
    assert one.environment == {"KEPT": "1"}


@pytest.mark.parametrize(
    ("traits", "default", "keys", "choosable"),
    [
        ({"image": "a:1"}, "a:1", ["a:1"], False),
        ({"image": "a:1", "allowed_images": ["a:1", "b:1"]}, "a:1", ["a:1", "b:1"], True),
        ({"image": "a:1", "allowed_images": {"B": "b:1"}}, "a:1", ["B"], True),
        ({"image": "a:1", "allowed_images": {"A": "a:1", "B": "b:1"}}, "A", ["A", "B"], True),
        ({"images": {"x": "x:1", "y": "y:1"}}, "x", ["x", "y"], True),
        ({"images": {"x": "x:1", "y": {"image": "y:1", "default": True}}}, "y", ["x", "y"], True),
        ({"images": {"x": "x:1"}, "allowed_images": ["b:1"]}, "x", ["x", "b:1"], True),
    ],
)
def test_dockerspawner_s_images_and_ours_make_one_catalogue(traits, default, keys, choosable):
    limits = spawner(**traits).limits()
    assert limits.default_image == default
    assert list(limits.versions) == keys
    assert limits.image_can_be_chosen == choosable


def test_any_image_can_be_named_where_dockerspawner_allows_it():
    limits = spawner(image="a:1", allowed_images="*").limits()
    assert limits.any_image
    assert limits.default_image == "a:1"
