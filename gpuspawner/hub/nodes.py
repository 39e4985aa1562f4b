"""What the hub tells its services of the nodes, for one that reads neither NVML nor the engine.

The hub's side is `NodeFacts`, behind the control socket; the service's is `read_answer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

from ..backends.base import Backend, ImagesOfNodes
from ..errors import Refused, Unknown
from ..gpus.health import HealthMark
from ..gpus.model import GPU, Holder, Node, Outsider
from ..gpus.out_of_service import OutOfServiceMark
from ..i18n.lazy_text import kept, restored
from ..images.catalogue import ImageVersion
from ..leases.ledger import Ledger


@dataclass(frozen=True)
class NodesAnswer:
    """The nodes as a hub has told of them.

    Args:
        nodes: with their GPUs and who holds them.
        ours: the names of the units that this hub's servers hold.
        marks: UUID -> mark of the GPUs out of service.
        outsiders: what has GPUs and no lease.
        versions: key -> what users call an image version of the catalogue.
        images: node -> the keys of the versions whose images are there; None: that isn't known now.
            Of one machine alone it isn't told.
    """

    nodes: tuple[Node, ...]
    ours: frozenset[str]
    marks: Mapping[str, OutOfServiceMark]
    outsiders: tuple[Outsider, ...]
    versions: Mapping[str, str]
    images: Mapping[str, frozenset[str] | None]


@dataclass(frozen=True)
class NodeFacts:
    """Reads the nodes for a hub's services, and takes GPUs out of service for them.

    Args:
        ledger: the leases on the nodes.
        backend: keeps what is out of service.
        versions: the catalogue's image versions, by their keys.
        images: returns node -> the references of those of their images that it has.
    """

    ledger: Ledger
    backend: Backend
    versions: Mapping[str, ImageVersion] = field(default_factory=dict)
    images: ImagesOfNodes | None = None

    async def facts(self) -> dict[str, Any]:
        """Return the nodes as they are now, as a JSON value for `read_answer`.

        Raises:
            Refused: NVML or the engine can't be read.
        """
        try:
            view = await self.ledger.read()
        except Unknown as error:
            raise Refused(str(error), status=503) from None
        ours = {uuid for lease in view.leases if not lease.holder.hub for uuid in lease.gpus}
        return {
            "nodes": [_written(node) for node in view.nodes],
            "ours": sorted(ours),
            "marks": [asdict(mark) for mark in self.ledger.last_notes.marks.values()],
            "outsiders": [{**asdict(each), "gpus": sorted(each.gpus)} for each in view.outsiders],
            "versions": {key: each.title or key for key, each in self.versions.items()},
            "images": await self._images(),
        }

    async def _images(self) -> dict[str, list[str] | None]:
        """Return node -> the keys of the versions whose images are there; None: not known."""
        there = await self.images() if self.images else {}
        return {
            node: None
            if found is None
            else [key for key, each in self.versions.items() if each.image in found]
            for node, found in there.items()
        }

    async def take_out(self, uuid: str, by: str, why: str) -> None:
        """Take a GPU out of service.

        Args:
            uuid: the GPU's.
            by: the name of the administrator.
            why: the reason, for everybody.

        Raises:
            Refused: it isn't out of service afterwards.
        """
        await self._done(self.backend.take_out_of_service(uuid, by, why))

    async def put_back(self, uuid: str) -> None:
        """Put a GPU into service again; raises `Refused` if it is out of service still."""
        await self._done(self.backend.put_into_service(uuid))

    async def _done(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Unknown as error:
            raise Refused(str(error), status=503) from None
        except Exception as error:  # the engine's
            raise Refused(self.ledger.explain_error(error), status=503) from error


def _written(node: Node) -> dict[str, Any]:
    gpus = [
        {**_fields(gpu), "reason": kept(gpu.reason), "share": str(gpu.share)} for gpu in node.gpus
    ]
    return {**asdict(replace(node, gpus=())), "gpus": gpus}


def _fields(gpu: GPU) -> dict[str, Any]:
    """Return a GPU's fields but its health, from which its state has followed by now."""
    return {name: each for name, each in asdict(gpu).items() if name not in _OF_HUB}


_OF_HUB = ("health", "needs_reset")


def read_answer(answer: Mapping[str, Any]) -> NodesAnswer:
    """Return a hub's answer, from `NodeFacts.facts` as JSON.

    Raises:
        ValueError: it isn't one; the hub may be of another version.
    """
    try:
        return NodesAnswer(
            tuple(
                Node(**{**node, "gpus": tuple(map(_read_gpu, node["gpus"]))})
                for node in answer["nodes"]
            ),
            frozenset(answer["ours"]),
            {mark["uuid"]: _read_mark(mark) for mark in answer["marks"]},
            tuple(
                Outsider(**{**each, "gpus": frozenset(each["gpus"])})
                for each in answer["outsiders"]
            ),
            dict(answer["versions"]),
            {
                node: None if found is None else frozenset(found)
                for node, found in answer["images"].items()
            },
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"what answers is no hub of this version: {error}") from None


def _read_mark(fields: Mapping[str, Any]) -> OutOfServiceMark:
    health = (HealthMark(**{**each, "seen": tuple(each["seen"])}) for each in fields["health"])
    return OutOfServiceMark(**{**fields, "health": tuple(health)})


def _read_gpu(fields: Mapping[str, Any]) -> GPU:
    holder = fields["holder"]
    return GPU(
        **{
            **fields,
            "holder": Holder(**holder) if holder else None,
            "reason": restored(fields["reason"]),
            "share": Fraction(fields["share"]),
        }
    )
