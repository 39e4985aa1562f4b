"""A start that nobody sent a choice for repeats the last one: as far as it can be had now."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from jupyterhub import orm
from tornado import web

from gpuspawner.choices.options import parts_of
from gpuspawner.hub import compat
from gpuspawner.spawner import GPUSpawner

from ..support.spawns import Hub, lab


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    """As on a hub, what is saved is noted."""
    end = compat.guard_saved_options(lambda choice: True, lambda: None)
    yield
    end()


def with_saved(hub: Hub, saved: Any, name: str = "", **traits: Any) -> GPUSpawner:
    """Return the spawner of a server that has started before, in another process."""
    row = orm.Spawner(name=name)
    contextvars.copy_context().run(setattr, row, "user_options", saved)
    return hub.spawner(row=row, **traits)


async def start(one: GPUSpawner, sent: Any = None) -> None:
    """Do what JupyterHub does until the choice is checked. ref: User.spawn."""
    options = one.orm_spawner.user_options or {}
    if sent is not None:
        options = one.orm_spawner.user_options = sent
    one.user_options = options
    one.clear_state()
    await one.apply_group_overrides()
    await one._run_apply_user_options(one.user_options)


FOREIGN = [
    ({"profile": ["large"], "image": "their/image:1"}, {}),
    ({"gpus": "two"}, {}),
    ({"gpus": ["1"], "image": "plain"}, {"image": "plain"}),
    ({"image": "gone", "gpus": 2}, {"gpus": 2}),
    ({"profile": "a", "gpus": 1, "image": "plain"}, {"gpus": 1, "image": "plain"}),
    ({"gpus": 99}, {}),
    ({"model": "H100"}, {}),
    ({"x" * 300: "y" * 9000}, {}),
    ({"nested": [[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]}, {}),
]


@pytest.mark.parametrize(("saved", "left"), FOREIGN, ids=range(len(FOREIGN)))
async def test_what_of_it_can_not_be_had_is_set_aside_with_a_word(saved, left, caplog) -> None:
    one = with_saved(Hub(), saved)
    with caplog.at_level(logging.WARNING):
        await start(one)
    assert one.user_options == left
    (line,) = [each for each in caplog.messages if "is set aside" in each]
    assert line.startswith("The saved choice of ada is set aside: ")
    assert len(line) < 500
    (step,) = one.page.steps
    assert step["message"].startswith(
        "Part of your last choice isn't available any more, and is left out. "
    )
    # Who goes back to the other spawner finds it as it was.
    assert one.orm_spawner.user_options == saved


@pytest.mark.parametrize(("saved", "left"), FOREIGN, ids=range(len(FOREIGN)))
async def test_the_same_is_refused_where_somebody_sends_it(saved, left) -> None:
    one = with_saved(Hub(), {"gpus": 1})
    with pytest.raises(web.HTTPError) as refused:
        await start(one, saved)
    assert refused.value.status_code in (400, 403)
    assert one.orm_spawner.user_options == {"gpus": 1}
    await start(one)
    assert one.attempt.request.gpus == 1


async def test_a_good_one_is_repeated_without_a_word(caplog) -> None:
    one = with_saved(Hub(), {"gpus": 2, "image": "secret"})
    await start(one)
    assert (one.attempt.request.gpus, one.image) == (2, "ref/secret")
    assert one.page.steps == caplog.messages == []


async def test_what_is_no_mapping_at_all_keeps_nobody_from_starting(caplog) -> None:
    for saved in (["large"], "large", 3):
        one = with_saved(Hub(), saved)
        assert "The saved choice of ada is set aside: it has no keys" in caplog.text
        caplog.clear()
        await start(one)
        assert one.user_options == {}


async def test_keys_of_the_administrator_s_own_hooks_stay() -> None:
    seen: list[Any] = []
    saved = {"profile": ["large"], "gpus": "two"}
    one = with_saved(Hub(), saved)
    one.apply_user_options = lambda spawner, choice: seen.append(choice)
    await start(one)
    assert seen == [{"profile": ["large"]}] == [one.user_options]


async def test_it_is_checked_by_the_rules_of_now() -> None:
    """Rights end with membership, and who has none left can start all the same."""
    one = with_saved(Hub(), {"gpus": 2, "image": "plain"})
    one.group_overrides = lab(gpu_limit=lambda spawner: 1)
    one.user.groups = [orm.Group(name="lab")]
    await start(one)
    assert one.user_options == {"image": "plain"}
    assert one.attempt.request.gpus == 1


GONE = {"kind": "1g.5gb", "model": "H100", "hours": 99, "image": "gone", "not_before": "rubbish"}


@pytest.mark.parametrize("gone", GONE)
async def test_one_key_that_is_gone_takes_no_other_with_it(gone) -> None:
    kept = {"image": "plain", "hours": 3, "safe_mode": True}
    left = {key: value for key, value in kept.items() if key != gone}
    one = with_saved(Hub(), {**kept, gone: GONE[gone]}, hour_limit=8, not_before_hours=8)
    await start(one)
    assert one.user_options == left
    assert one.attempt.request.kind == "gpu"
    assert one.attempt.request.seconds == (8 * 3600 if gone == "hours" else 3 * 3600)
    (step,) = one.page.steps
    assert step["message"].startswith("Part of your last choice isn't available any more")


async def test_what_others_of_one_s_servers_hold_is_a_refusal() -> None:
    """That is no fault of the choice: it can be had again."""
    hub = Hub()
    hub.occupy()
    one = with_saved(hub, {"gpus": 1}, "second", user_gpu_limit=2, default_gpus=0)
    one.user.name = "else"
    with pytest.raises(web.HTTPError) as refused:
        await start(one)
    assert refused.value.status_code == 403


def test_the_last_part_is_the_empty_choice() -> None:
    for saved in ({"gpus": 1, "profile": "a"}, {}, None, [], 3):
        assert list(parts_of(saved))[-1] == {}
    assert list(parts_of({"gpus": 1, "a": 2}, others_allowed=True))[-1] == {"a": 2}
