"""What a node's daemon tells a hub, as JSON, and the hub's strict reader of it.

A daemon is another machine's: it may be of another version, broken, or somebody's who wants to be
given other people's GPUs. What isn't exactly a report is a `ValueError`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..gpus.device_ids import gpus_named
from ..gpus.model import GPU, NAMELESS, SHARED, WHOLE, Node
from ..gpus.unit_names import MAX_SLOTS, PROFILE
from ..i18n.lazy_text import LazyText, kept, restored
from ..untrusted import printable

# Changes whenever an older hub or daemon would misunderstand what it is told.
PROTOCOL = 2
# The largest answer: 256 GPUs in 64 slots, with their links, are below it.
MAX_REPORT_BYTES = 8 * 2**20
MAX_REASON = 500
# As many as `nvml.read` accepts.
MAX_GPUS = 256
MAX_CONTAINERS = 4096

_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_GPU_UUID = rf"GPU-{_UUID}"
_ANY_UUID = rf"^(GPU-{_UUID}|MIG-{_UUID}|MIG-GPU-{_UUID}/[0-9]{{1,3}}/[0-9]{{1,3}})$"
_KIND = re.compile(rf"{WHOLE}|{SHARED}|{NAMELESS}|{PROFILE}")
# A sentence with its values, whose placeholders have no width: "%(x)999999999s" would be too long.
_PLAIN = re.compile(r"([^%]|%%|%\([a-z_]{1,30}\)s)*")
# More than a node has of anything, MiB.
_MAX_MIB = 2**31
_MAX_NUMBER = 1e12
_MAX_DEPTH = 3

Mib = Annotated[int, Field(ge=0, le=_MAX_MIB)]
Version = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+~_-]{0,63}$")]


@dataclass(frozen=True)
class NodeContainer:
    """A container that runs on a node with GPUs, or may have some.

    Args:
        name: what the node's engine calls it.
        task: Swarm's id of the task that it is; "": it is none.
        gpus: as the engine names them, and UUIDs of the node's units once a hub has read it.
    """

    name: str
    task: str
    gpus: frozenset[str]


@dataclass(frozen=True)
class NodeReport:
    """What a node's daemon has told.

    Args:
        node: its driver and its units, without holders.
        version: the version of gpuspawner that runs there.
        boot_id: changes whenever the machine is started anew.
        time: its clock, in seconds since the epoch.
        age: how long ago it had read NVML, in seconds.
        toolkit: the version of its NVIDIA Container Toolkit; None if there is none.
        engine: the version of its Docker Engine; None if that can't be asked.
        unread: why NVML can't be read, as a sentence for users; "" if it was.
        containers: those that run with GPUs; None if the engine there can't be asked.
    """

    node: Node
    version: str
    boot_id: str = ""
    time: float = 0.0
    age: float = 0.0
    toolkit: str | None = None
    engine: str | None = None
    unread: str = ""
    containers: tuple[NodeContainer, ...] | None = None


class _Strict(BaseModel):
    # A later version may tell more.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


class _Unit(_Strict):
    uuid: Annotated[str, Field(pattern=_ANY_UUID, max_length=64)] | None
    index: Annotated[int, Field(ge=0, lt=4096)]
    model: Annotated[str, Field(max_length=200)]
    memory_total_mib: Mib | None
    memory_used_mib: Mib | None
    utilization_percent: Annotated[int, Field(ge=0, le=100)] | None
    # Who holds it is never a node's to say.
    state: Literal["free", "foreign", "mig", "unhealthy", "excluded", "unknown"]
    reason: Any
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]{1,2}$")] | None
    kind: Annotated[str, Field(max_length=34)]
    part: Annotated[int, Field(ge=0, lt=100)] | None
    parts: Annotated[int, Field(ge=1, le=MAX_SLOTS)]
    parent: Annotated[str, Field(pattern=rf"^({_GPU_UUID})?$")]
    share: Annotated[str, Field(pattern=r"^[0-9]{1,2}(/[1-9][0-9]?)?$")]
    links: Annotated[
        list[Annotated[list[Any], Field(min_length=2, max_length=2)]],
        Field(max_length=MAX_GPUS),
    ]


class _Container(_Strict):
    name: Annotated[str, Field(max_length=255)]
    task: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{0,64}$")]
    gpus: Annotated[
        list[Annotated[str, Field(max_length=255)]], Field(max_length=MAX_GPUS * MAX_SLOTS)
    ]


class _Report(_Strict):
    protocol: int
    version: Version
    driver: Version | None
    cuda: Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")] | None
    gpus: Annotated[list[_Unit], Field(max_length=MAX_GPUS * MAX_SLOTS)]
    boot_id: Annotated[str, Field(pattern=r"^[0-9a-f-]{0,64}$")]
    time: Annotated[float, Field(ge=0, le=_MAX_NUMBER)]
    age: Annotated[float, Field(ge=0, le=_MAX_NUMBER)]
    toolkit: Version | None
    engine: Version | None
    unread: Any
    containers: Annotated[list[_Container], Field(max_length=MAX_CONTAINERS)] | None


class OtherVersion(ValueError):
    """The daemon speaks another protocol. `version` is that of gpuspawner there, "" if unknown."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version


def written(report: NodeReport) -> dict[str, Any]:
    """Return a report as a JSON value for `read_report`."""
    found = {**asdict(report), "protocol": PROTOCOL, "unread": kept(report.unread)}
    del found["node"]
    node, containers = report.node, report.containers
    return {
        **found,
        "driver": node.driver,
        "cuda": node.cuda,
        "gpus": [_written(gpu) for gpu in node.gpus],
        "containers": containers
        and [{**asdict(each), "gpus": sorted(each.gpus)} for each in containers],
    }


def of_engine(value: Mapping[str, Any]) -> NodeContainer:
    """Return a container as `backends.docker.given` lists it.

    Raises:
        LookupError, TypeError: it isn't one.
    """
    return NodeContainer(str(value["name"]), str(value["task"]), frozenset(value["gpus"]))


def _written(gpu: GPU) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "model": str(gpu.model),
        "memory_total_mib": gpu.memory_total_mib,
        "memory_used_mib": gpu.memory_used_mib,
        "utilization_percent": gpu.utilization_percent,
        "state": gpu.state,
        "reason": kept(gpu.reason),
        "compute_capability": gpu.compute_capability,
        "kind": gpu.kind,
        "part": gpu.part,
        "parts": gpu.parts,
        "parent": gpu.parent,
        "share": str(gpu.share),
        "links": [list(link) for link in gpu.links],
    }


def read_report(value: Any, name: str) -> NodeReport:
    """Return what a daemon has told, from JSON.

    Args:
        value: the JSON value.
        name: the hub's name for the node: what the node calls itself says nothing.

    Raises:
        OtherVersion: it speaks another protocol.
        ValueError: it isn't a report.
    """
    if not isinstance(value, Mapping):
        raise ValueError("it is no report")
    if value.get("protocol") != PROTOCOL:
        version = value.get("version")
        raise OtherVersion(printable(version, 64) if isinstance(version, str) else "")
    try:
        found = _Report.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(printable(f"{place}: {first['msg']}", 200)) from None
    gpus = tuple(_read_unit(each, name) for each in found.gpus)
    if found.driver is None and any(gpu.state == "free" for gpu in gpus):
        raise ValueError("it has no driver and GPUs that are free")
    _check_units(gpus)
    return NodeReport(
        Node(name, found.driver, found.cuda, gpus),
        found.version,
        found.boot_id,
        found.time,
        found.age,
        found.toolkit,
        found.engine,
        read_sentence(found.unread),
        _read_containers(found, gpus),
    )


def _read_containers(report: _Report, gpus: Sequence[GPU]) -> tuple[NodeContainer, ...] | None:
    """Return the containers; whatever a node calls their GPUs, it speaks of its own."""
    if report.containers is None:
        return None
    return tuple(
        NodeContainer(printable(each.name, 255), each.task, gpus_named(each.gpus, gpus))
        for each in report.containers
    )


def _read_unit(unit: _Unit, node: str) -> GPU:
    if not _KIND.fullmatch(unit.kind):
        raise ValueError("kind: it is none")
    return GPU(
        uuid=unit.uuid,
        index=unit.index,
        model=printable(unit.model, 200),
        memory_total_mib=unit.memory_total_mib,
        memory_used_mib=unit.memory_used_mib,
        utilization_percent=unit.utilization_percent,
        state=unit.state,
        reason="" if unit.state == "free" else read_sentence(unit.reason),
        compute_capability=unit.compute_capability,
        node=node,
        kind=unit.kind,
        part=unit.part,
        parts=unit.parts,
        parent=unit.parent,
        share=1 if unit.share == "1" else Fraction(unit.share),
        links=tuple(_read_link(link) for link in unit.links),
    )


def _read_link(link: Sequence[Any]) -> tuple[str, int]:
    uuid, closeness = link
    if not (
        isinstance(uuid, str)
        and re.fullmatch(_GPU_UUID, uuid)
        and type(closeness) is int
        and 0 <= closeness <= 1_000_000
    ):
        raise ValueError("links: not a GPU and how close it is")
    return uuid, closeness


def _check_units(gpus: Iterable[GPU]) -> None:
    """Raise `ValueError` unless each unit is one, and no two of them are the same part of a GPU."""
    by_uuid: defaultdict[str, list[GPU]] = defaultdict(list)
    for gpu in gpus:
        _check_unit(gpu)
        if gpu.uuid:
            by_uuid[gpu.uuid.lower()].append(gpu)
    for units in by_uuid.values():
        ways = {(unit.kind, unit.parts, unit.index) for unit in units}
        if len(ways) > 1 or len({unit.part for unit in units}) < len(units):
            raise ValueError("a GPU is listed twice")
    for gpu in gpus:
        of_parent = by_uuid.get(gpu.parent.lower(), ()) if gpu.parent else ()
        if any(parent.state == "free" for parent in of_parent):
            raise ValueError("a GPU is free as a whole, and has instances")


def _check_unit(gpu: GPU) -> None:
    is_instance = (gpu.uuid or "").startswith("MIG-")
    match gpu.kind:
        case "gpu":
            fits = (gpu.part, gpu.parts, gpu.parent, gpu.share) == (None, 1, "", 1)
            fits = fits and not is_instance
        case "shared":
            fits = gpu.part is not None and gpu.part < gpu.parts > 1 and not gpu.parent
            fits = fits and gpu.share == Fraction(1, gpu.parts) and not is_instance
        case _:
            fits = gpu.part is not None and is_instance and bool(gpu.parent) and 0 < gpu.share <= 1
    if not fits:
        raise ValueError(f"kind: what it says of GPU {gpu.index} doesn't go together")
    if gpu.uuid is None and gpu.state == "free":
        raise ValueError("a GPU without a UUID is free")


def read_sentence(value: Any) -> str:
    """Return a sentence that somebody else has sent, as `lazy_text.kept` makes it; "" for none.

    One that can be translated is checked first: who formats whatever comes is easily made to fill
    the memory.
    """
    if isinstance(value, str):
        return printable(value, MAX_REASON)
    if not isinstance(value, Mapping) or not _is_plain(value):
        return ""
    text = restored(value)
    if not isinstance(text, LazyText) or len(text) > MAX_REASON or not text.isprintable():
        return printable(str(text)[:MAX_REASON], MAX_REASON)
    return text


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_REASON
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(value, int | float):
        return abs(value) <= _MAX_NUMBER
    if not isinstance(value, Mapping) or depth >= _MAX_DEPTH:
        return False
    if "form" in value:
        return _is_plain(value.get("form")) and _is_plain(value.get("number"))
    one, many, values = value.get("one"), value.get("many"), value.get("values")
    return (
        all(
            isinstance(text, str) and len(text) <= MAX_REASON and _PLAIN.fullmatch(text)
            for text in (one, many)
        )
        and isinstance(value.get("number"), int)
        and isinstance(values, Mapping)
        and len(values) <= 10
        and all(_is_plain(each, depth + 1) for each in values.values())
    )
