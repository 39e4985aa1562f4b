"""Which of the queries that we put to NVML this machine's driver answers, and how fast.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pynvml

from .nvml_links import MAX_LINKS
from .nvml_queries import count_processes, has_host_memory, query_text, read_memory

NVML_PREFIX = "NVMLError_"
# nvmlFieldValue: what is to be done about a GPU, since driver 555.
RECOVERY_ACTION = 230


@dataclass(frozen=True)
class Answer:
    """What NVML said to one query.

    Args:
        index: of the GPU.
        query: what was asked for, in words.
        error: "" if it was answered, else NVML's name of the error: "NotSupported".
        milliseconds: how long that took.
    """

    index: int
    query: str
    error: str
    milliseconds: float


def ask() -> list[Answer]:
    """Put each query to each GPU, in a session of NVML's own. Blocks for as long as that takes.

    Raises:
        pynvml.NVMLError: there is no NVML, or it doesn't start.
    """
    pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
    try:
        return [each for index in range(pynvml.nvmlDeviceGetCount()) for each in _ask_about(index)]
    finally:
        pynvml.nvmlShutdown()


def _ask_about(index: int) -> Iterator[Answer]:
    handles: list[Any] = []
    yield _answer(index, "handle", lambda: handles.append(pynvml.nvmlDeviceGetHandleByIndex(index)))
    if not handles:
        return
    for words, question in _queries(handles[0]).items():
        yield _answer(index, words, question)


def _answer(index: int, words: str, question: Callable[[], Any]) -> Answer:
    begun = time.monotonic()
    error = ""
    try:
        question()
    except Exception as problem:
        error = type(problem).__name__.removeprefix(NVML_PREFIX)
    return Answer(index, words, error, (time.monotonic() - begun) * 1000)


def _queries(gpu: Any) -> dict[str, Callable[[], Any]]:
    """Return words -> query. Those that an older nvidia-ml-py doesn't know fail when called."""

    def of(name: str, *more: Any) -> Callable[[], Any]:
        return lambda: getattr(pynvml, name)(gpu, *more)

    return {
        "UUID": of("nvmlDeviceGetUUID"),
        "name": partial(query_text, pynvml.nvmlDeviceGetName, gpu),
        "PCI address": of("nvmlDeviceGetPciInfo"),
        "compute capability": of("nvmlDeviceGetCudaComputeCapability"),
        "MIG mode": of("nvmlDeviceGetMigMode"),
        "number of MIG instances": of("nvmlDeviceGetMaxMigDeviceCount"),
        "compute mode": of("nvmlDeviceGetComputeMode"),
        "memory": partial(_known, read_memory, gpu),
        "processes": partial(_known, count_processes, gpu),
        "graphics processes": of("nvmlDeviceGetGraphicsRunningProcesses"),
        "use": of("nvmlDeviceGetUtilizationRates"),
        "temperature": of("nvmlDeviceGetTemperature", 0),
        "host's memory": partial(has_host_memory, gpu),
        "remapped rows": of("nvmlDeviceGetRemappedRows"),
        "retired pages": of("nvmlDeviceGetRetiredPagesPendingStatus"),
        "memory errors": of("nvmlDeviceGetTotalEccErrors", 1, 0),
        "kinds of events": of("nvmlDeviceGetSupportedEventTypes"),
        "clocks' reasons": of("nvmlDeviceGetCurrentClocksThrottleReasons"),
        "recovery action": partial(_field, gpu, RECOVERY_ACTION),
        "NVLink": partial(_links, gpu),
        "topology": of("nvmlDeviceGetTopologyCommonAncestor", gpu),
    }


def _known(question: Callable[[Any], Any], gpu: Any) -> None:
    if question(gpu) in (None, (None, None)):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _field(gpu: Any, number: int) -> None:
    (value,) = pynvml.nvmlDeviceGetFieldValues(gpu, [number])
    if value.nvmlReturn:
        raise pynvml.NVMLError(value.nvmlReturn)


def _links(gpu: Any) -> None:
    for link in range(MAX_LINKS):
        try:
            pynvml.nvmlDeviceGetNvLinkState(gpu, link)
            return
        except pynvml.NVMLError:
            if link == MAX_LINKS - 1:
                raise
