"""The reader of the machines that were invited: those in the hub's folder, whenever it reads them.

Who is invited or forgotten while the hub runs is, so, without a restart of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends.base import Report
from ..errors import GPUSpawnerError
from ..gpus.model import Node
from ..i18n.lazy_text import lazy_gettext
from ..leases.audit_log import one_line
from .addresses import NODES_FILE, read_addresses
from .client import NodesReader, unknown_node
from .exchange import NodeError
from .identity import IDENTITY_FILE, load
from .last_known import LastKnown, read_last_known, write_last_known
from .node_images import LocalImage
from .reports import NodeContainer


class InvitedNodes:
    """Reader of all nodes that were invited.

    Args:
        folder: the hub's folder of them, as `gpuspawner node invite` writes it.
        timeout: how long a node may take, in seconds.
        log: told once of what is wrong with the folder, and of each node that doesn't answer.
        rules: the arguments of `gpus.reader.read_node`, by which each node reads its GPUs.
    """

    def __init__(self, folder: Path, timeout: float, log: Any, **rules: Any) -> None:
        self._folder = folder
        self._timeout = timeout
        self._log = log
        self._rules = rules
        self._reader: NodesReader | None = None
        self._read: tuple[int, int] | None = None
        self._problem = ""
        self._written: Sequence[Any] = ()
        # Whether the nodes shut NVML down after each read.
        self.lets_go = False

    @property
    def containers(self) -> Mapping[str, Sequence[NodeContainer] | None]:
        """Name -> what runs with GPUs on a node that has answered; see `NodesReader`."""
        return self._reader.containers if self._reader else {}

    async def __call__(self) -> tuple[Node, ...]:
        """Read all nodes at once; () if none was invited.

        Raises:
            NodeError: which those are can't be read.
        """
        try:
            self._follow_folder()
        except GPUSpawnerError as error:
            if str(error) != self._problem:
                self._log.warning("No GPUs are handed out: %s", one_line(error))
            self._problem = str(error)
            raise NodeError(
                lazy_gettext(
                    "The hub's list of machines can't be read. The hub's log says why, for an "
                    "administrator."
                ),
                str(error),
            ) from None
        self._problem = ""
        if self._reader is None:
            return ()
        self._reader.lets_go = self.lets_go
        nodes = await self._reader()
        await self._write_down(self._reader.last_known)
        return nodes

    async def _write_down(self, known: Sequence[LastKnown]) -> None:
        """Have the next hub process know what there is, where that has changed."""
        hardware = [each.hardware for each in known]
        if hardware == self._written:
            return
        self._written = hardware
        try:
            await asyncio.to_thread(write_last_known, self._folder, known)
        except OSError as error:
            self._log.warning(
                "What GPUs the machines have isn't known after a restart, as it can't be written "
                "into %s: %s",
                one_line(self._folder),
                one_line(error),
            )

    def knows(self, name: str) -> bool:
        """Return whether a node is among those that were invited, as of the last read."""
        return self._reader is not None and self._reader.knows(name)

    async def images(self, name: str, references: Sequence[str]) -> Mapping[str, LocalImage | None]:
        """Return reference -> the image that a node has by that name; None: it has none.

        Raises:
            NodeError: it can't be asked.
        """
        return await self._known(name).images(name, references)

    async def pull(self, name: str, image: str, report: Report) -> LocalImage:
        """Have a node get an image; return it when the node has it. See `NodesReader.pull`."""
        return await self._known(name).pull(name, image, report)

    def _known(self, name: str) -> NodesReader:
        if self._reader is None:
            raise unknown_node(name)
        return self._reader

    def _follow_folder(self) -> None:
        """Take up the list of nodes, if it has changed; raises `GPUSpawnerError` if that fails."""
        now = _signature(self._folder / NODES_FILE)
        if now == self._read:
            return
        addresses = read_addresses(self._folder)
        if self._reader is not None:
            self._reader.set_addresses(addresses)
        elif addresses:
            identity = load(self._folder / IDENTITY_FILE)
            self._reader = NodesReader(addresses, identity, self._timeout, self._log, **self._rules)
        if self._reader is not None:
            self._reader.restore(read_last_known(self._folder, addresses))
        self._read = now


def _signature(file: Path) -> tuple[int, int] | None:
    """Return what changes whenever a file is replaced; None if there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def problem_of(folder: Path) -> str:
    """Return why a hub can't ask the machines in its folder, for administrators; "" if it can."""
    try:
        if read_addresses(folder):
            load(folder / IDENTITY_FILE)
    except GPUSpawnerError as error:
        return str(error)
    return ""
