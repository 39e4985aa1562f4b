"""Readers of this machine as a `Node`, made from NVML's inventory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from ..i18n.lazy_text import lazy_gettext
from ..timeouts import within
from . import nvml
from .missing_driver import without_driver
from .model import GPU, GPUState, Node
from .state import GPUMemory
from .units import split

# Windows' own device, through which WSL 2 gives a container all GPUs, whichever were asked for.
# ref: https://github.com/NVIDIA/nvidia-container-toolkit/issues/21
WSL = Path("/dev/dxg")
ONE_HOLDER = lazy_gettext(
    "On WSL 2 a server with a GPU sees all of them, so that only the first one is handed out."
)


def read_node(
    excluded: Collection[str] = (),
    memory_threshold_mib: int | None = None,
    lets_go: bool = False,
    shared: Mapping[str, int] | None = None,
) -> Node:
    """Read this machine from NVML, without holders. Blocks: on an event loop, use `Reader`.

    Args:
        excluded: UUIDs of GPUs that are never handed out.
        memory_threshold_mib: a GPU with more memory than this in use counts as in use; None: the
            default of `nvml.read`.
        lets_go: whether NVML is shut down after this read, so that a GPU can be reset.
        shared: UUID or model -> the number of slots in which such a GPU is shared.

    Raises:
        nvml.InventoryError: NVML can't be read.
    """
    found = nvml.read(memory_threshold_mib, excluded=frozenset(excluded), lets_go=lets_go)
    gpus = tuple(map(_gpu, found.gpus))
    if WSL.exists():
        gpus = _one_at_a_time(gpus)
    units = (
        split(gpu, shared or {}, seen.instances) for gpu, seen in zip(gpus, found.gpus, strict=True)
    )
    return Node("", found.driver, found.cuda, tuple(chain.from_iterable(units)))


def _one_at_a_time(gpus: tuple[GPU, ...]) -> tuple[GPU, ...]:
    """Return the GPUs with only the first one to be handed out: who has it sees them all."""
    return (*gpus[:1], *(replace(gpu, state="excluded", reason=ONE_HOLDER) for gpu in gpus[1:]))


def _gpu(seen: nvml.GPUFacts) -> GPU:
    state: GPUState = "free"
    reason = seen.reason
    if seen.state != "ok":
        state = seen.state
    elif seen.uuid is None:
        state, reason = "unknown", reason or lazy_gettext("it doesn't tell its UUID")
    elif seen.in_use:
        state, reason = "foreign", reason or lazy_gettext("in use by a program outside the hub")
    return GPU(
        uuid=seen.uuid,
        index=seen.index,
        model=seen.name,
        memory_total_mib=seen.memory_total_mib,
        memory_used_mib=seen.memory_used_mib,
        utilization_percent=seen.utilization_percent,
        state=state,
        reason=reason,
        links=seen.links,
        health=seen.health,
        needs_reset=seen.needs_reset or seen.mig_pending not in (None, seen.mig),
        compute_capability=seen.compute_capability and "{}.{}".format(*seen.compute_capability),
    )


class NodeReader(Protocol):
    """A reader of all nodes."""

    # Whether NVML is shut down after each read.
    lets_go: bool

    async def __call__(self) -> tuple[Node, ...]:
        """Read the nodes, their GPUs without holders."""


class HubReader(NodeReader, Protocol):
    """A reader of all nodes that a hub has."""

    async def memory_of(self, uuids: Collection[str]) -> Mapping[str, GPUMemory]:
        """Return what processes hold of the memory of some GPUs, as far as that is known here."""

    def why_no_driver(self) -> str:
        """Return why no node has a driver, for administrators, after a read that found none."""


class Reader:
    """Reader of this machine for an event loop: it reads in a thread, with a timeout.

    NVML blocks for ever on some broken GPUs. At most one hanging thread is left behind; it is a
    daemon, so it doesn't keep the process from exiting.

    Args:
        timeout: seconds to wait for NVML.
        settings: the arguments of `read_node`.
    """

    def __init__(self, timeout: float, **settings: Any) -> None:
        self._timeout = timeout
        self._read = partial(read_node, **settings)
        self._hanging: threading.Thread | None = None
        # Whether NVML is shut down after each read.
        self.lets_go = False

    async def __call__(self) -> tuple[Node, ...]:
        """Read this machine, which is the only node.

        Raises:
            nvml.InventoryError: NVML can't be read, or doesn't answer in time.
        """
        node: Node = await self._in_thread(partial(self._read, lets_go=self.lets_go))
        return (node,)

    async def memory_of(self, uuids: Collection[str]) -> Mapping[str, GPUMemory]:
        """Read what processes hold of the memory of these GPUs; see `nvml.read_memory_of`.

        Raises:
            nvml.InventoryError: as for a read.
        """
        read = partial(nvml.read_memory_of, uuids, lets_go=self.lets_go)
        found: Mapping[str, GPUMemory] = await self._in_thread(read)
        return found

    def why_no_driver(self) -> str:
        """Return why this machine has no driver."""
        return without_driver().words

    async def _in_thread(self, read: Callable[[], Any]) -> Any:
        if self._hanging is not None and self._hanging.is_alive():
            raise nvml.InventoryError(
                lazy_gettext(
                    "NVML has not answered for more than %(seconds)s seconds. "
                    "A GPU may hang: see `nvidia-smi` and the kernel's log on the GPU machine.",
                    seconds=f"{self._timeout:g}",
                )
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        thread = threading.Thread(
            target=_run,
            args=(read, loop, answer),
            name="nvml",
            daemon=True,
        )
        thread.start()
        try:
            return await within(self._timeout, answer)
        except asyncio.TimeoutError:
            self._hanging = thread
            raise nvml.InventoryError(
                lazy_gettext(
                    "NVML didn't answer within %(seconds)s seconds.",
                    seconds=f"{self._timeout:g}",
                )
            ) from None


def _run(read: Callable[[], Any], loop: asyncio.AbstractEventLoop, answer: Any) -> None:
    def resolve(value: Any, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)

    value, error = None, None
    try:
        value = read()
    except Exception as problem:
        error = problem
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(resolve, value, error)
