"""The hub's reader of its nodes: what each node's daemon says, or why nothing is known of it.

What has no fresh answer is unknown, and so never free. A node that is slow, silent, broken or lying
costs the others nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from .. import __version__
from ..backends.base import Report
from ..gpus.model import GPU, Node
from ..i18n.lazy_text import MachineText, lazy_gettext, listed
from ..i18n.phrases import clock_time
from ..leases.audit_log import one_line
from ..timeouts import within
from ..untrusted import parse_json, printable
from .addresses import NodeAddress
from .exchange import MAX_LINE_BYTES, Connection, NodeError, connected, silent, strange
from .identity import Identity, client_context
from .last_known import LastKnown
from .node_images import LocalImage, follow, read_image
from .reports import MAX_REPORT_BYTES, NodeContainer, NodeReport, OtherVersion, read_report

# How long a node may take. One that has taken longer isn't waited for until it has answered.
TIMEOUT_SECONDS = 5.0
# The oldest reading that counts.
MAX_AGE_SECONDS = 30.0
DOCTOR_SECONDS = 90.0
LEFTOVERS_SECONDS = 15.0
# How long a node may take for a part of an image that it is sent, and to unpack it.
PART_SECONDS = 150.0
UNPACK_SECONDS = 4000.0
# From here on a clock is wrong enough to say so: the ends of servers are by the hub's.
CLOCK_SECONDS = 30.0
MAX_IMAGES = 1000

T = TypeVar("T")


class NodesReader:
    """Reader of all nodes, in place of `gpus.reader.Reader`, which reads one machine.

    Args:
        addresses: the nodes.
        identity: the hub's, which the nodes know.
        timeout: how long a node may take, in seconds.
        log: told once whenever a node stops answering or answers again.
        excluded, memory_threshold_mib, shared: as for `gpus.reader.read_node`: the rules are the
            hub's, and each node reads its GPUs by them.
    """

    def __init__(
        self,
        addresses: Iterable[NodeAddress],
        identity: Identity,
        timeout: float = TIMEOUT_SECONDS,
        log: Any = None,
        excluded: Collection[str] = (),
        memory_threshold_mib: int | None = None,
        shared: Mapping[str, int] | None = None,
    ) -> None:
        self._tls = client_context(identity)
        self._timeout = timeout
        self._log = log or logging.getLogger(__name__)
        self._settings = {
            "excluded": sorted(excluded),
            "memory_threshold_mib": memory_threshold_mib,
            "shared": dict(shared or {}),
        }
        self._nodes: dict[str, _Known] = {}
        # Whether the nodes shut NVML down after each read, so that GPUs can be reset.
        self.lets_go = False
        # Name -> what runs with GPUs on a node, of those that answered the last read; None: its
        # engine can't be asked.
        self.containers: Mapping[str, Sequence[NodeContainer] | None] = {}
        # UUID -> the nodes that say they have it, where several do, as of the last read.
        self.contested: Mapping[str, Sequence[str]] = {}
        self.set_addresses(addresses)

    def set_addresses(self, addresses: Iterable[NodeAddress]) -> None:
        """Replace the nodes. What is known of one that is the same as before stays known."""
        before = self._nodes
        self._nodes = {
            address.name: known
            if (known := before.get(address.name)) and known.address == address
            else _Known(address)
            for address in addresses
        }
        for name, known in before.items():
            if self._nodes.get(name) is not known:
                known.close()

    @property
    def problems(self) -> Mapping[str, str]:
        """Name -> why nothing is known of a node, for administrators; of those that don't answer.

        It is that of the last read.
        """
        return {name: known.problem for name, known in self._nodes.items() if known.problem}

    @property
    def reports(self) -> Mapping[str, NodeReport]:
        """Name -> the last answer of each node that has ever answered, however old."""
        return {name: known.report for name, known in self._nodes.items() if known.report}

    @property
    def last_known(self) -> Sequence[LastKnown]:
        """What each node has told at last that has ever answered."""
        return [
            LastKnown(known.address, known.report, known.answered)
            for known in self._nodes.values()
            if known.report
        ]

    def restore(self, found: Mapping[str, LastKnown]) -> None:
        """Take up what an earlier hub process knew of the nodes that haven't answered this one."""
        for name, last in found.items():
            known = self._nodes.get(name)
            if known is not None and known.report is None and known.address == last.address:
                known.report, known.answered = last.report, last.at

    def clock_offset(self, name: str) -> float | None:
        """Return by how many seconds a node's clock is ahead of this one's; None if unknown."""
        known = self._nodes.get(name)
        return known.clock_offset if known and known.report else None

    async def __call__(self) -> tuple[Node, ...]:
        """Read all nodes at once; never raises for what a node does.

        A node without a fresh answer has its GPUs, as far as they were ever known, as unknown.
        """
        known = list(self._nodes.values())
        found = await asyncio.gather(*map(self._read, known))
        self.containers = {
            each.address.name: each.report.containers
            for each in known
            if each.report and not each.problem
        }
        contested = shared_uuids(found)
        for uuid in contested.keys() - self.contested.keys():
            names = contested[uuid]
            self._log.warning("Nodes %s all say that they have %s", one_line(names), one_line(uuid))
        self.contested = contested
        return tuple(node.with_gpus(_without(node.gpus, contested)) for node in found)

    async def _read(self, known: _Known) -> Node:
        try:
            report = await known.fresh(lambda: self._ask(known.address), self._timeout)
        except NodeError as error:
            failed = error
        except Exception as error:  # what it sent has found a mistake of ours: the others go on
            self._log.exception("Node %s", one_line(known.address.name))
            failed = strange(known.address, f"its answer breaks the hub's reader: {error!r:.200}")
        else:
            if known.problem:
                self._log.info("Node %s answers again", one_line(known.address.name))
            known.problem = ""
            return report.node
        if known.problem != failed.technical:
            name = known.address.name
            self._log.warning("Node %s: unknown: %s", one_line(name), one_line(failed.technical))
        known.problem = failed.technical
        return known.as_unknown(str(failed))

    async def _ask(self, address: NodeAddress) -> NodeReport:
        settings = {**self._settings, "lets_go": self.lets_go}
        value = await self._json(address, "/v1/node", settings)
        try:
            report = read_report(value, address.name)
        except OtherVersion as error:
            raise other_version(address, error.version) from None
        except ValueError as error:
            raise strange(address, f"its answer isn't a report: {error}") from None
        if report.unread:
            raise NodeError(report.unread, f"its GPUs can't be read: {report.unread}")
        if report.age > MAX_AGE_SECONDS:
            raise silent(address, f"what it says is {report.age:.0f} seconds old")
        return report

    async def _json(
        self,
        address: NodeAddress,
        path: str,
        body: Mapping[str, Any] | None,
        most: int = MAX_REPORT_BYTES,
    ) -> Any:
        async with connected(address, self._tls) as connection:
            headers = await connection.ask(path, body, "1.1")
            text = await connection.read_body(headers, most)
        try:
            return parse_json(text)
        except ValueError as error:
            raise strange(address, f"it sends no JSON: {error}") from None

    # -- Of one node -------------------------------------------------------------------------------

    def knows(self, name: str) -> bool:
        """Return whether there is a node of that name."""
        return name in self._nodes

    async def images(self, name: str, references: Sequence[str]) -> Mapping[str, LocalImage | None]:
        """Return reference -> the image that a node has by that name; None: it has none.

        Raises:
            NodeError: it can't be asked.
        """
        address = self._address(name)
        value = await self._within(
            address,
            self._timeout,
            self._json(address, "/v1/images", {"references": list(references)[:MAX_IMAGES]}),
        )
        try:
            return {each: read_image(value["images"][each]) for each in references}
        except (KeyError, TypeError, ValueError):
            raise strange(address, "what it says of its images isn't that") from None

    async def pull(
        self, name: str, image: str, report: Report, policy: str = "always"
    ) -> LocalImage:
        """Have a node get an image; return it when the node has it.

        The pull goes on if this is cancelled, as others may wait for it.

        Args:
            name: the node's.
            image: the image reference.
            report: called with the progress.
            policy: DockerSpawner's `pull_policy`.

        Raises:
            PullRefused: the node can't get it.
            NodeError: the node can't be asked, or its answer can't be used.
        """
        address = self._address(name)
        async with AsyncExitStack() as stack:

            async def ask() -> Connection:
                connection = await stack.enter_async_context(connected(address, self._tls))
                await connection.ask("/v1/pull", {"reference": image, "policy": policy}, "1.0")
                return connection

            connection = await self._within(address, self._timeout, ask())
            return await follow(address, connection, report)

    async def load(
        self, name: str, image_id: str, size: int, parts: AsyncIterator[bytes]
    ) -> LocalImage:
        """Send a node an image; return it when the node has it.

        Args:
            name: the node's.
            image_id: the image's id, which the node checks.
            size: its size in bytes.
            parts: its archive, without names, as `docker save` writes it for an id.

        Raises:
            NodeError: the node doesn't take it, or can't be asked.
        """
        address = self._address(name)
        path = f"/v1/load?id={quote(image_id)}&size={size}"
        async with AsyncExitStack() as stack:
            entering = stack.enter_async_context(connected(address, self._tls))
            connection: Connection = await self._within(address, self._timeout, entering)
            try:
                headers = await connection.send(path, parts, PART_SECONDS, UNPACK_SECONDS)
                body = await within(self._timeout, connection.read_body(headers, MAX_LINE_BYTES))
            except asyncio.TimeoutError:
                raise silent(address, "it doesn't take the image in time") from None
        try:
            image = read_image(parse_json(body)["image"])
        except (KeyError, TypeError, ValueError):
            image = None
        if image is None or image.id != image_id:
            raise strange(address, "what it says it has isn't the image that was sent")
        return image

    async def doctor(self, name: str) -> list[dict[str, str]]:
        """Return what a node's own doctor finds, as `doctor.command.entry` writes each finding.

        Raises:
            NodeError: it can't be asked.
        """
        address = self._address(name)
        value = await self._within(address, DOCTOR_SECONDS, self._json(address, "/v1/doctor", None))
        try:
            return [
                {
                    "check": printable(each["check"], 100),
                    "state": each["state"] if each["state"] in _STATES else "warning",
                    "found": printable(each["found"], 1000),
                    "advice": "\n".join(
                        printable(line, 500) for line in each["advice"].splitlines()[:10]
                    ),
                }
                for each in value["findings"][:200]
            ]
        except (AttributeError, KeyError, TypeError):
            raise strange(address, "what its doctor says isn't that") from None

    async def remove_leftovers(self, name: str) -> list[str]:
        """Have a node remove the volumes that doctors have left; return those still in use.

        Raises:
            NodeError: it can't be asked.
        """
        address = self._address(name)
        asking = self._json(address, "/v1/leftovers", {})
        value = await self._within(address, LEFTOVERS_SECONDS, asking)
        try:
            return [printable(each, 255) for each in value["left"][:100]]
        except (AttributeError, KeyError, TypeError):
            raise strange(address, "what it says is left isn't a list of names") from None

    def close(self) -> None:
        """Give up what is under way."""
        for known in self._nodes.values():
            known.close()

    def _address(self, name: str) -> NodeAddress:
        known = self._nodes.get(name)
        if known is None:
            raise unknown_node(name)
        return known.address

    async def _within(
        self, address: NodeAddress, seconds: float, work: Any, late: str = "it takes too long"
    ) -> Any:
        try:
            return await within(seconds, work)
        except asyncio.TimeoutError:
            raise silent(address, f"{late}: more than {seconds:g} seconds") from None


_STATES = ("ok", "note", "warning", "failure", "skipped")


def unknown_node(name: str) -> NodeError:
    """Return the error of a node that this hub doesn't know."""
    sentence = MachineText(
        lazy_gettext("This hub knows no machine %(node)s.", node=name),
        lazy_gettext("This hub doesn't know the machine."),
    )
    return NodeError(sentence, f"this hub knows no machine {name}")


def other_version(address: NodeAddress, version: str) -> NodeError:
    """Return the error of a node whose daemon speaks another protocol than this hub."""
    return NodeError(
        MachineText(
            lazy_gettext(
                "Machine %(node)s runs another version of gpuspawner than the hub: an "
                "administrator has to update one of them.",
                node=address.name,
            ),
            lazy_gettext(
                "The machine runs another version of gpuspawner than the hub: an administrator "
                "has to update one of them."
            ),
        ),
        f"gpuspawner {version or 'of an unknown version'} runs there, and {__version__} here: "
        "install the same version on both",
    )


class _Known:
    """A node, with its last answer and the question that is under way.

    Args:
        address: the node.
    """

    def __init__(self, address: NodeAddress) -> None:
        self.address = address
        self.report: NodeReport | None = None
        self.clock_offset = 0.0
        self.problem = ""
        self.answered = -math.inf
        # A question that has taken too long, until it is answered or given up.
        self._late: asyncio.Task[NodeReport] | None = None
        self._was_late = False

    async def fresh(self, ask: Callable[[], Any], timeout: float) -> NodeReport:
        """Return an answer to a question that is asked now; raises `NodeError` if there is none.

        A node that was too late is asked in the background, and only its next answer but one
        counts: nobody waits for it twice.
        """
        if self._late is not None and not self._late.done():
            raise silent(self.address, f"it doesn't answer within {timeout:g} seconds")
        self._late = None
        task = asyncio.ensure_future(self._keep(ask, timeout))
        if self._was_late:
            self._late = task
            task.add_done_callback(_retrieve)
            raise silent(self.address, f"it doesn't answer within {timeout:g} seconds")
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _keep(self, ask: Callable[[], Any], timeout: float) -> NodeReport:
        began = time.time()
        try:
            report: NodeReport = await within(timeout, ask())
        except asyncio.TimeoutError:
            self._was_late = True
            raise silent(self.address, f"it doesn't answer within {timeout:g} seconds") from None
        except NodeError:
            self._was_late = False
            raise
        self._was_late = False
        # It was read between the question and the answer.
        self.clock_offset = report.time - (began + time.time()) / 2
        self.report, self.answered = report, time.time()
        return report

    def as_unknown(self, reason: str) -> Node:
        """Return the node with the GPUs that it had when it answered, none of which is free."""
        if self.report is None:
            return Node(self.address.name)
        since = lazy_gettext(
            "%(reason)s Its GPUs were last known at %(time)s.",
            reason=reason,
            time=clock_time(self.answered),
        )
        node = self.report.node
        return replace(
            node,
            gpus=tuple(
                replace(
                    gpu,
                    state="unknown",
                    reason=since,
                    memory_used_mib=None,
                    utilization_percent=None,
                )
                for gpu in node.gpus
            ),
        )

    def close(self) -> None:
        """Give up a question that is under way."""
        if self._late is not None:
            self._late.cancel()


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def shared_uuids(nodes: Iterable[Node]) -> Mapping[str, Sequence[str]]:
    """Return UUID, in lower case -> the names of the nodes that have it, where several have."""
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for uuid in {each.lower() for gpu in node.gpus for each in _uuids_of(gpu)}:
            owners[uuid].append(node.name)
    return {uuid: names for uuid, names in owners.items() if len(names) > 1}


def _uuids_of(gpu: GPU) -> list[str]:
    return [each for each in (gpu.uuid, gpu.parent) if each]


def _without(gpus: Sequence[GPU], contested: Mapping[str, Sequence[str]]) -> tuple[GPU, ...]:
    """Return GPUs with those as unknown that several nodes say they have.

    A lease couldn't tell which it is, and one of them may lie, or have lost its GPU to the other.
    """
    return tuple(_contested(gpu, contested) for gpu in gpus) if contested else tuple(gpus)


def _contested(gpu: GPU, contested: Mapping[str, Sequence[str]]) -> GPU:
    for uuid in _uuids_of(gpu):
        if names := contested.get(uuid.lower()):
            reason = MachineText(
                lazy_gettext(
                    "Machines %(nodes)s both say that they have it.", nodes=listed(names, "and")
                ),
                lazy_gettext("Another machine says that it has it, too."),
            )
            return replace(gpu, uuid=None, state="unknown", reason=reason)
    return gpu
