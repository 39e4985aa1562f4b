"""The images of a Swarm's nodes: each has its own, and a server's node has its image before it.

What the hub's engine has by a name is that image on every machine, by its digest, or by its id
where no registry knows it. What it hasn't got is what the registry says by that name, which that
engine asks without pulling. So a machine can't run another one by that name, and a service never
has its engine ask a registry: Swarm shows no progress, and asks for minutes. Where no registry says
anything, it is what a machine says that it is.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import GPUSpawnerError
from ...i18n.lazy_text import MachineText, join_sentences, lazy_gettext
from ...leases.audit_log import one_line
from ...nodes.exchange import NodeError
from ...nodes.node_images import LocalImage, PullRefused
from ...timeouts import within
from ..base import Report

# How old what is known of a node's images may be where a node is chosen, and how long that takes.
PLACES_SECONDS = 15.0
WAIT_SECONDS = 1.0
# How long a registry may take, for how long its answer is what it has now, and after which time one
# that has given none is asked again.
REGISTRY_SECONDS = 10.0
FRESH_SECONDS = 5.0
AGAIN_SECONDS = 60.0
# Of how many names that is kept.
MAX_NAMES = 1000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ImageError(GPUSpawnerError):
    """A node hasn't got an image. `str()` is a sentence for users, `said` is for the log."""

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


class NodeDaemons(Protocol):
    """Asks the daemons of nodes for images."""

    def knows(self, name: str) -> bool:
        """Return whether a node has a daemon that this hub may ask."""

    async def images(self, name: str, references: Sequence[str]) -> Mapping[str, LocalImage | None]:
        """Return reference -> the image that a node has by that name; None: it has none."""

    async def pull(self, name: str, image: str, report: Report) -> LocalImage:
        """Have a node get an image; return it."""


@dataclass(frozen=True)
class ImageNames:
    """What names of images mean.

    Args:
        find: returns what the hub's own engine has by a name; None: nothing.
        resolve: returns what a registry has by a name, with its digest; "": none says that. With
            True it is asked what it has now.
    """

    find: Callable[[str], Awaitable[LocalImage | None]]
    resolve: Callable[[str, bool], Awaitable[str]]


@dataclass(frozen=True)
class Wanted:
    """An image that a node is to have.

    Args:
        name: as it is configured.
        exact: the names of exactly that image, the best first: its digest, its id. () if the hub
            doesn't know more than its name.
        source: what a registry knows it by; "": none does.
    """

    name: str
    exact: tuple[str, ...]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        """By what a node is asked for it."""
        return self.exact or (self.name,)

    def reference(self, found: Mapping[str, LocalImage | None]) -> str:
        """Return by what a service names it on a node; "" if the node hasn't got it.

        Args:
            found: what the node says that it has.
        """
        for name in self.exact:
            if found.get(name) is not None:
                return name
        image = None if self.exact else found.get(self.name)
        return image.id if image else ""


def is_id(name: str) -> bool:
    """Return whether an image is named by its id."""
    return name.startswith("sha256:")


async def wanted(image: str, policy: str, names: ImageNames) -> Wanted:
    """Return what a name means.

    Args:
        image: the image reference.
        policy: DockerSpawner's `pull_policy`; with "always" it means what the registry has now, and
            with "never" no registry is asked.
        names: what names mean.
    """
    if is_id(image):
        return Wanted(image, (image,), "")
    here = None if policy == "always" and "@" not in image else await names.find(image)
    if "@" in image:
        return Wanted(image, (image, *([here.id] if here else ())), image)
    if here is None:
        told = "" if policy == "never" else await names.resolve(image, policy == "always")
        return Wanted(image, (told,), told) if told else Wanted(image, (), image)
    repository = repository_of(image)
    own = [each for each in here.digests if each.startswith(f"{repository}@")]
    digest = next(iter((*own, *here.digests)), "")
    return Wanted(image, tuple(filter(None, (digest, here.id))), digest)


def repository_of(image: str) -> str:
    """Return an image reference without its tag."""
    return image.rpartition(":")[0] if ":" in image.rpartition("/")[2] else image


async def ensure(
    daemons: NodeDaemons, node: str, image: str, policy: str, names: ImageNames, report: Report
) -> str:
    """Have a node have an image; return by what a service names it there.

    Args:
        daemons: ask the nodes.
        node: the node's name.
        image: the image reference.
        policy: DockerSpawner's `pull_policy`. With "skip", and on a node without a daemon, the
            node's engine gets it as the server starts, without a word.
        names: what names mean.
        report: called with the progress.

    Raises:
        ImageError: it can't have it.
    """
    about = await wanted(image, policy, names)
    if policy == "skip" or not daemons.knows(node):
        # By its id an engine asks no registry, ever.
        return about.names[-1 if policy == "never" else 0]
    try:
        # What is known by its digest is what the registry has now.
        if policy != "always" or about.exact:
            found = await daemons.images(node, about.names)
            if reference := about.reference(found):
                return reference
            if policy == "never" or not about.source:
                raise ImageError(_explain_missing(about, node, policy))
        pulled = await daemons.pull(node, about.source, report)
    except PullRefused as error:
        said = str(error)
        named = MachineText(
            join_sentences(said, lazy_gettext("That is machine %(node)s.", node=node)), said
        )
        raise ImageError(named, error.technical) from None
    except NodeError as error:
        again = lazy_gettext("So your server's image can't be had there. Please try again later.")
        raise ImageError(join_sentences(str(error), again), error.technical) from None
    return _checked(about, node, pulled)


def _checked(about: Wanted, node: str, pulled: LocalImage) -> str:
    """Return by what a service names an image that was pulled; raises `ImageError` if it isn't."""
    if not about.exact:
        return pulled.id
    digest = about.source.rpartition("@")[2]
    if pulled.id not in (digest, *about.exact) and all(
        each.rpartition("@")[2] != digest for each in pulled.digests
    ):
        raise ImageError(
            MachineText(
                lazy_gettext(
                    "Machine %(node)s has got another image than %(image)s: an administrator has "
                    "to look at it.",
                    node=node,
                    image=about.name,
                ),
                lazy_gettext(
                    "The machine has got another image than %(image)s: an administrator has to "
                    "look at it.",
                    image=about.name,
                ),
            ),
            f"it says that it has {pulled.id}, {', '.join(pulled.digests)[:500]}",
        )
    return about.source


def _explain_missing(about: Wanted, node: str, policy: str) -> str:
    if about.source:
        return MachineText(
            lazy_gettext(
                'The image %(image)s isn\'t on machine %(node)s, and pull_policy is "%(policy)s": '
                "an administrator can put it there, with `docker pull` or `gpuspawner image "
                "spread`.",
                image=about.name,
                node=node,
                policy=policy,
            ),
            lazy_gettext(
                'The image %(image)s isn\'t on the machine, and pull_policy is "%(policy)s": an '
                "administrator can put it there, with `docker pull` or `gpuspawner image spread`.",
                image=about.name,
                policy=policy,
            ),
        )
    return MachineText(
        lazy_gettext(
            "The image %(image)s isn't on machine %(node)s, and no registry has it: an "
            "administrator can put it there, with `gpuspawner image spread`.",
            image=about.name,
            node=node,
        ),
        lazy_gettext(
            "The image %(image)s isn't on the machine, and no registry has it: an administrator "
            "can put it there, with `gpuspawner image spread`.",
            image=about.name,
        ),
    )


@dataclass
class _Told:
    """What a registry has said of a name.

    Args:
        digest: the name with its digest; "": none has ever said it.
        at: when it was asked last, by the monotonic clock, in seconds.
        question: what it was asked then; its result is whether it has said it.
        is_silent: whether it says nothing, which the log was told.
    """

    digest: str = ""
    at: float = -math.inf
    question: asyncio.Task[bool] | None = None
    is_silent: bool = False

    def is_fresh(self) -> bool:
        """Return whether the last answer is what the registry has now, or is still to come."""
        if self.question is None:
            return False
        if not self.question.done():
            return True
        patience = FRESH_SECONDS if self.question.result() else AGAIN_SECONDS
        return time.monotonic() - self.at < patience


class RegistryDigests:
    """The digests that registries have by names, as the hub's own engine is told them.

    What a registry has said is what a name means from then on, in each place of this hub, until it
    is asked anew. Where it doesn't answer, that is what it said last.

    Args:
        ask: returns the digest of a name; raises any error if the registry doesn't say it.
        log: a logger, which is told once whenever a registry stops saying it, or says it again.
    """

    def __init__(self, ask: Callable[[str], Awaitable[str]], log: Any) -> None:
        self._ask = ask
        self._log = log
        # By name, the one that was asked for last at the end.
        self._told: dict[str, _Told] = {}

    async def of(self, image: str, anew: bool) -> str:
        """Return a name with its digest; "" if no registry has ever said it.

        Args:
            image: the image reference.
            anew: whether it is to be what the registry has now.
        """
        told = self._told.pop(image) if image in self._told else _Told()
        self._told[image] = told
        self._forget()
        if told.digest and not anew:
            return told.digest
        if told.question is None or not told.is_fresh():
            told.question = asyncio.ensure_future(self._look(image, told))
            told.at = time.monotonic()
        # Who gives up leaves the others their answer.
        await asyncio.shield(told.question)
        return told.digest

    def _forget(self) -> None:
        """Forget names that nobody has asked for since many others: users may name any image."""
        while len(self._told) > MAX_NAMES:
            del self._told[next(iter(self._told))]

    async def _look(self, image: str, told: _Told) -> bool:
        """Ask a registry; return whether it has said it."""
        try:
            digest = await within(REGISTRY_SECONDS, self._ask(image))
            if not _DIGEST.fullmatch(digest):
                raise ValueError(f"its digest is {digest!r:.100}")
        except Exception as error:
            if not told.is_silent:
                self._say_silent(image, told.digest, error)
            told.is_silent = True
            return False
        if told.is_silent:
            self._log.info("The registry says again which image %s is", one_line(image))
        told.is_silent = False
        told.digest = f"{repository_of(image)}@{digest}"
        return True

    def _say_silent(self, image: str, told: str, error: Exception) -> None:
        then = (
            f"Machines run what it was before, {told}"
            if told
            else "Each machine runs what it has by that name, or gets. To have the same on all of "
            "them, pull it on the hub's machine, or name it by its digest"
        )
        self._log.warning(
            "No registry says to the hub's Docker Engine which image %s is: %s. %s",
            one_line(image),
            one_line(str(error) or type(error).__name__),
            one_line(then),
        )


class ImagePlaces:
    """Which nodes have an image, for the choice of a node: of each a little old, or unknown.

    Args:
        names: what names of images mean.
    """

    def __init__(self, names: ImageNames) -> None:
        self._names = names
        # (node, image) -> when it was asked, and the question.
        self._asked: dict[tuple[str, str], tuple[float, asyncio.Task[bool]]] = {}

    async def nodes_with(
        self, daemons: NodeDaemons, nodes: Iterable[str], image: str, policy: str
    ) -> frozenset[str]:
        """Return the names of the nodes that have an image, of those that have said so in time.

        Args:
            daemons: ask the nodes.
            nodes: the names of all nodes.
            image: the image reference.
            policy: DockerSpawner's `pull_policy`.
        """
        asked = [name for name in nodes if daemons.knows(name)]
        if len(asked) < 2:
            return frozenset()  # there is nothing to choose
        now = time.monotonic()
        self._asked = {
            key: each for key, each in self._asked.items() if now - each[0] < PLACES_SECONDS
        }
        for name in asked:
            if (name, image) not in self._asked:
                question = asyncio.ensure_future(self._has(daemons, name, image, policy))
                self._asked[name, image] = (now, question)
        questions = {name: self._asked[name, image][1] for name in asked}
        # Nobody waits for long for a node that is only to be preferred.
        await asyncio.wait(questions.values(), timeout=WAIT_SECONDS)
        return frozenset(name for name, each in questions.items() if each.done() and each.result())

    async def _has(self, daemons: NodeDaemons, node: str, image: str, policy: str) -> bool:
        try:
            about = await wanted(image, policy, self._names)
            return bool(about.reference(await daemons.images(node, about.names)))
        except Exception:  # it is asked again when it is chosen, and that one says why
            return False


class CatalogueOnNodes:
    """Which images of a catalogue each node has, as it said lately: for who looks on.

    While nobody looks, nobody asks; and who looks waits for a moment at most.

    Args:
        names: what names of images mean.
    """

    def __init__(self, names: ImageNames) -> None:
        self._names = names
        self._began = -math.inf
        self._round: asyncio.Task[None] | None = None
        # Node -> what it said last; None: it didn't.
        self._told: dict[str, frozenset[str] | None] = {}

    async def known(
        self, daemons: NodeDaemons, nodes: Iterable[str], images: Collection[str], policy: str
    ) -> Mapping[str, frozenset[str] | None]:
        """Return node -> those of the images that it has; None: that isn't known.

        Args:
            daemons: ask the nodes.
            nodes: the names of all nodes.
            images: image references.
            policy: DockerSpawner's `pull_policy`.
        """
        names, now = list(nodes), time.monotonic()
        over = self._round is None or self._round.done()
        if over and now - self._began >= PLACES_SECONDS:
            self._began = now
            self._round = asyncio.ensure_future(self._ask(daemons, names, images, policy))
        if self._round and not self._told.keys() >= {*names}:
            await asyncio.wait([self._round], timeout=WAIT_SECONDS)
        return {name: self._told.get(name) for name in names}

    async def _ask(
        self, daemons: NodeDaemons, names: Sequence[str], images: Collection[str], policy: str
    ) -> None:
        try:
            about = {image: await wanted(image, policy, self._names) for image in images}
        except Exception:  # the hub's own engine can't be asked
            self._told = dict.fromkeys(names)
            return
        asked = sorted({name for each in about.values() for name in each.names})

        async def ask(node: str) -> None:
            try:
                found = await daemons.images(node, asked) if daemons.knows(node) else None
            except Exception:  # a node's fault is told where it is to start something
                found = None
            self._told[node] = (
                None
                if found is None
                else frozenset(image for image, each in about.items() if each.reference(found))
            )

        await asyncio.gather(*map(ask, names))
        self._told = {name: each for name, each in self._told.items() if name in names}
