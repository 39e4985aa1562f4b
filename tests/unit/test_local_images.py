"""Which images are on a machine, as its engine says."""

from __future__ import annotations

import asyncio
import logging

import docker.errors
import pytest

from gpuspawner.backends.docker.backend import DockerBackend
from gpuspawner.images import local_images
from gpuspawner.images.local_images import LocalImages


class Engine:
    """Answers as an engine does, of images that a test names."""

    def __init__(self, *there: str) -> None:
        self.there = set(there)
        self.away = False
        self.asked: list[str] = []

    def inspect_image(self, reference: str) -> dict[str, str]:
        self.asked.append(reference)
        if self.away:
            raise docker.errors.APIError("on strike")
        if reference not in self.there:
            raise docker.errors.ImageNotFound("no such image")
        return {}


def local(engine: Engine) -> LocalImages:
    """The local images of an engine, by way of the backend that asks it."""
    return LocalImages(DockerBackend(lambda: engine, logging.getLogger("test")).has_image)


async def test_what_the_engine_does_not_know_is_missing_and_is_asked_for_once() -> None:
    engine = Engine("a")
    images = local(engine)
    assert await images.missing({"a", "b"}) == {"b"}
    assert await images.missing({"a", "b"}) == {"b"}
    assert sorted(engine.asked) == ["a", "b"]


async def test_after_a_while_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    images = local(engine)
    assert await images.missing({"a"}) == {"a"}
    engine.there.add("a")
    monkeypatch.setattr(local_images, "CACHE_SECONDS", -1.0)
    assert await images.missing({"a"}) == frozenset()


async def test_where_the_engine_cannot_be_asked_nothing_is_called_missing() -> None:
    engine = Engine()
    engine.away = True
    assert await local(engine).missing({"a"}) == frozenset()


async def test_many_who_ask_at_once_share_what_the_engine_says_of_an_image() -> None:
    engine = Engine("a", "b")
    backend = DockerBackend(lambda: engine, logging.getLogger("test"))
    asked = [backend.inspect_image(image) for image in ("a", "b", "c") * 10]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    missing = [isinstance(answer, docker.errors.ImageNotFound) for answer in answers]
    assert missing == [False, False, True] * 10
    assert {image: engine.asked.count(image) <= 2 for image in "abc"} == dict.fromkeys("abc", True)
    # Later it is asked anew: an image may have got another tag.
    engine.there.remove("a")
    with pytest.raises(docker.errors.ImageNotFound):
        await backend.inspect_image("a")


async def test_an_inspection_of_moments_ago_will_do_for_who_says_so() -> None:
    engine = Engine("a")
    backend = DockerBackend(lambda: engine, logging.getLogger("test"))
    await backend.inspect_image("a", 3600)
    await backend.inspect_image("a", 3600)
    assert engine.asked == ["a"]
    await backend.inspect_image("a")
    assert engine.asked == ["a", "a"]
    # That there is none is never remembered, nor what there was before.
    engine.there.clear()
    for max_age in (0, 3600, 3600):
        with pytest.raises(docker.errors.ImageNotFound):
            await backend.inspect_image("a", max_age)
    assert engine.asked == ["a"] * 5
