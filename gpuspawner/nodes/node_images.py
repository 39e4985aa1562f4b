"""What a node says of its images, and of a pull: the hub's strict reader of both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..backends.base import Report
from ..i18n.lazy_text import MachineText, lazy_gettext
from ..timeouts import within
from ..untrusted import printable
from .addresses import NodeAddress
from .exchange import Connection, NodeError, silent, strange
from .reports import read_sentence

# From here on a pull that says nothing is given up; a daemon says every few seconds that it lives.
SILENCE_SECONDS = 60.0
# From here on one is given up that says nothing new: a registry may be slow, and try again.
STANDSTILL_SECONDS = 900.0
# The longest pull that is waited for.
LONGEST_SECONDS = 4 * 3600.0
# A daemon says at most a few things a second.
MAX_LINES = 100_000
MAX_DIGESTS = 1000

_ID = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST = re.compile(r"[^@\s]{1,400}@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class LocalImage:
    """An image that an engine has.

    Args:
        id: the engine's id of it, "sha256:…", by which a server is started without a registry.
        digests: its names with the digests that registries know it by.
    """

    id: str
    digests: tuple[str, ...] = ()


class PullRefused(NodeError):
    """A node can't get an image. `str()` is a sentence for users."""


def is_image_id(text: str) -> bool:
    """Return whether a text is an engine's id of an image, as `docker inspect` has it."""
    return _ID.fullmatch(text) is not None


def largest_archive(size: int) -> int:
    """Return how many bytes the archive of an image may have.

    Args:
        size: the image's size in bytes, as its engine says.
    """
    return 2 * size + 16 * 2**20


def read_image(value: Any) -> LocalImage | None:
    """Return an image as a node tells it; None: it hasn't got it.

    Raises:
        ValueError: it isn't one.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError("no image")
    name, digests = value.get("id"), value.get("digests")
    if not isinstance(name, str) or not is_image_id(name):
        raise ValueError("no id of an image")
    if not isinstance(digests, list) or len(digests) > MAX_DIGESTS:
        raise ValueError("no digests of an image")
    if not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in digests):
        raise ValueError("no digest of an image")
    return LocalImage(name, tuple(digests))


async def follow(address: NodeAddress, connection: Connection, report: Report) -> LocalImage:
    """Pass on the progress of a pull; return the image.

    Args:
        address: the node.
        connection: on which its daemon tells of the pull.
        report: called with the progress.

    Raises:
        PullRefused: the node can't get it.
        NodeError: what it says isn't of a pull, or goes on for too long.
    """
    pull = _Followed(address, report)
    lines = connection.lines()
    for _ in range(MAX_LINES):
        seconds = pull.seconds_left()
        try:
            # What comes as fast as it is read comes in no time at all.
            event = await within(seconds, anext(lines, _END)) if seconds > 0 else _LATE
        except asyncio.TimeoutError:
            event = _LATE
        if event is _LATE:
            raise silent(address, "its pull doesn't go on")
        if event is _END:
            raise silent(address, "it broke off in the middle of a pull")
        if (image := pull.take(event)) is not None:
            return image
    raise strange(address, "what it says of a pull has no end")


_END, _LATE = object(), object()


class _Followed:
    """How far a pull is, as a node tells it.

    Args:
        address: the node.
        report: called with the progress.
    """

    def __init__(self, address: NodeAddress, report: Report) -> None:
        self._address = address
        self._report = report
        self._last: tuple[float, str] = (0.0, "")
        self._began = self._changed = asyncio.get_running_loop().time()

    def seconds_left(self) -> float:
        """Return for how long the next event is waited for, in seconds."""
        now = asyncio.get_running_loop().time()
        ends = (self._changed + STANDSTILL_SECONDS, self._began + LONGEST_SECONDS)
        return min(SILENCE_SECONDS, *(end - now for end in ends))

    def take(self, event: Any) -> LocalImage | None:
        """Take the next event; return the image at the end, None before.

        Raises:
            PullRefused: the node can't get it.
            NodeError: it isn't an event of a pull.
        """
        if not isinstance(event, Mapping):
            raise strange(self._address, "what it says of a pull isn't that")
        if "error" in event:
            raise PullRefused(
                read_sentence(event["error"])
                or MachineText(
                    lazy_gettext("Machine %(node)s can't get the image.", node=self._address.name),
                    lazy_gettext("The machine can't get the image."),
                ),
                printable(str(event.get("said", "")), 500),
            )
        if "done" in event:
            return self._read(event["done"])
        fraction, sentence = event.get("fraction"), read_sentence(event.get("sentence"))
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1 or not sentence:
            return None
        told = (max(self._last[0], float(fraction)), sentence)
        if told != self._last:
            self._last, self._changed = told, asyncio.get_running_loop().time()
            self._report(*told)
        return None

    def _read(self, value: Any) -> LocalImage:
        try:
            image = read_image(value)
        except ValueError as error:
            raise strange(self._address, f"what it says it has got isn't one: {error}") from None
        if image is None:
            raise strange(self._address, "it says that it has got the image, and hasn't got it")
        return image
