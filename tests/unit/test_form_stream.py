"""What pages that are open share: one look for all, and what it made."""

from __future__ import annotations

import asyncio

import pytest

from gpuspawner.choices.open_forms import ChangeWatcher, RenderCache


async def test_a_change_is_noticed_once_for_all_and_nobody_looks_after_the_last_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuspawner.choices.open_forms.POLL_SECONDS", 0.01)
    seen, looks = ["free"], 0

    async def look() -> str:
        nonlocal looks
        looks += 1
        return seen[0]

    watch = ChangeWatcher(look)
    with watch.watching(), watch.watching():
        assert await watch.wait_for_change(5)  # the first look
        waiting = [asyncio.ensure_future(watch.wait_for_change(5)) for _ in range(3)]
        assert not await watch.wait_for_change(0.1)
        assert not any(each.done() for each in waiting)
        seen[0] = "taken"
        assert await asyncio.gather(*waiting) == [True] * 3
    await asyncio.sleep(0.1)
    before = looks
    await asyncio.sleep(0.1)
    assert looks == before
    with watch.watching():
        seen[0] = "free"
        assert await watch.wait_for_change(5)


def test_what_many_are_told_is_made_once_while_nothing_changes() -> None:
    same, made = RenderCache(), []

    def make(what: str) -> str:
        made.append(what)
        return what

    assert [same.get("now", key, lambda key=key: make(key)) for key in "abab"] == list("abab")
    assert made == ["a", "b"]
    assert same.get("later", "a", lambda: make("new")) == "new"
    assert same.get("now", "b", lambda: make("b again")) == "b again"


def test_whoever_asks_for_ever_new_choices_has_so_many_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpuspawner.choices.open_forms.MAX_KEPT", 3)
    same, made = RenderCache(), []

    def make(what: int) -> str:
        made.append(what)
        return str(what)

    for what in (0, 1, 2, 3, 3, 2, 1):
        assert same.get("now", what, lambda what=what: make(what)) == str(what)
    assert made == [0, 1, 2, 3]
    assert same.get("now", 0, lambda: make(0)) == "0"
    assert made == [0, 1, 2, 3, 0]
    assert len(same._made) == 3
