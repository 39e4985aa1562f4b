"""Who gets which GPU: values and pure functions, nothing read and nothing written.

Everything here works on what `inventory` and `leases` have read. It imports only the standard
library and our words, so that each rule can be tested as a table of values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from ..i18n.lazy_text import lazy_gettext, lazy_ngettext, listed
from .model import GPU, Lease, Request

Policy = Callable[[Sequence[GPU], Sequence[GPU], int], Sequence[GPU]]


def choose(request: Request, gpus: Sequence[GPU], policy: str = "pack") -> tuple[GPU, ...] | None:
    """Return the GPUs to hand out for a request, or None where too few are free.

    Only GPUs in state "free" that can name their UUID are handed out. GPUs of one model are
    preferred, since a training step takes as long as its slowest GPU; models are mixed only where
    nothing else would do and the request named none.

    Args:
        request: how many GPUs, and of which model.
        gpus: every GPU of the host, in any order.
        policy: a key of `POLICIES`.

    Raises:
        ValueError: there is no such policy, or two entries have one UUID.
    """
    check("policy", policy, POLICIES, gpus)
    if request.gpus <= 0:
        return ()
    host = sorted(gpus, key=lambda gpu: gpu.index)
    fitting = [gpu for gpu in host if _is_free(gpu) and request.takes(gpu)]
    if len(fitting) < request.gpus:
        return None
    pick = POLICIES[policy]
    pools = [pool for pool in by_model(fitting) if len(pool) >= request.gpus]
    if not pools:
        return tuple(pick(fitting, host, request.gpus))
    # Packing takes from the model with least left, spreading from the one with most.
    pool = (min if policy == "pack" else max)(pools, key=len)
    return tuple(pick(pool, host, request.gpus))


def check(option: str, value: str, known: Mapping[str, object], gpus: Sequence[GPU]) -> None:
    """Raise ValueError where an option isn't one of the known ones, or two GPUs have one UUID."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")
    named = [gpu.uuid for gpu in gpus if gpu.uuid]
    if len(named) != len(set(named)):
        raise ValueError("two GPUs have the same UUID: nothing can be told apart")


def explain(request: Request, gpus: Sequence[GPU]) -> str:
    """Say in one sentence why `choose` finds nothing for the request now."""
    fitting = [gpu for gpu in gpus if request.takes(gpu)]
    wanted = gpus_words(request.gpus, request.model)
    if len(fitting) < len(gpus) and request.model is None:
        wanted = lazy_gettext(
            "%(gpus)s that image %(image)s runs on", gpus=wanted, image=request.image
        )
    if len(fitting) < request.gpus:
        return lazy_gettext(
            "You asked for %(gpus)s, and this machine has %(total)s.",
            gpus=wanted,
            total=len(fitting),
        )
    there = availability(fitting)
    return lazy_gettext("You asked for %(gpus)s, and %(there)s.", gpus=wanted, there=there)


def availability(gpus: Sequence[GPU]) -> str:
    """Say how many of some GPUs are free, and what keeps the others: "1 of 4 is free now (…)"."""
    free = sum(map(_is_free, gpus))
    counts = Counter(gpu.state for gpu in gpus if not _is_free(gpu))
    others = listed([_counted(state, number) for state, number in sorted(counts.items())])
    now = lazy_ngettext(
        "%(num)s of %(total)s is free now",
        "%(num)s of %(total)s are free now",
        free,
        total=len(gpus),
    )
    return lazy_gettext("%(now)s (%(others)s)", now=now, others=others) if others else now


def _counted(state: str, number: int) -> str:
    return lazy_gettext("%(number)s %(state)s", number=number, state=_WORDS[state])


_WORDS: dict[str, str] = {
    "leased": lazy_gettext("in use"),
    "foreign": lazy_gettext("in use outside the hub"),
    "mig": lazy_gettext("in MIG mode"),
    "unhealthy": lazy_gettext("out of order"),
    "excluded": lazy_gettext("kept out"),
    "unknown": lazy_gettext("in an unknown state"),
    "free": lazy_gettext("without a UUID"),
}


def pack(pool: Sequence[GPU], host: Sequence[GPU], count: int) -> Sequence[GPU]:
    """Fill the gaps: the tightest run of neighbours that fits, so that long runs stay whole.

    Neighbours by index share a PCIe switch or a bridge on most boards.
    """
    runs = [run for run in _runs(pool) if len(run) >= count]
    if runs:
        return min(runs, key=len)[:count]
    largest_first = sorted(_runs(pool), key=len, reverse=True)
    return sorted((gpu for run in largest_first for gpu in run), key=_rank(largest_first))[:count]


def spread(pool: Sequence[GPU], host: Sequence[GPU], count: int) -> Sequence[GPU]:
    """Keep distance: each next GPU as far as can be from those that work already.

    Neighbours share heat and bandwidth, which matters for many small servers.
    """
    chosen: list[GPU] = []
    busy = [gpu.index for gpu in host if gpu.state in ("leased", "foreign")]
    left = list(pool)
    while len(chosen) < count:
        farthest = max(
            left,
            key=lambda gpu: (min((abs(gpu.index - b) for b in busy), default=0), -gpu.index),
        )
        left.remove(farthest)
        chosen.append(farthest)
        busy.append(farthest.index)
    return sorted(chosen, key=lambda gpu: gpu.index)


POLICIES: dict[str, Policy] = {"pack": pack, "spread": spread}


def apply_leases(gpus: Iterable[GPU], leases: Iterable[Lease]) -> tuple[GPU, ...]:
    """Return the GPUs with each one's holder filled in.

    A lease decides over what NVML sees: a leased GPU is "leased" also while a program computes on
    it. A GPU that is sick keeps that state, since its holder must read why it doesn't answer.
    """
    # Where two leases name one GPU, it is busy until the later end.
    by_end = sorted(leases, key=lambda lease: inf if lease.until is None else lease.until)
    found = {uuid: lease for lease in by_end for uuid in lease.gpus}
    return tuple(
        _lease(gpu, found[gpu.uuid]) if gpu.uuid and gpu.uuid in found else gpu for gpu in gpus
    )


def model_counts(gpus: Iterable[GPU]) -> dict[str, tuple[int, int]]:
    """Return model -> (free, total), in the order of the host's GPUs."""
    counts: dict[str, tuple[int, int]] = {}
    for gpu in gpus:
        free, total = counts.get(gpu.model, (0, 0))
        counts[gpu.model] = (free + _is_free(gpu), total + 1)
    return counts


def _lease(gpu: GPU, lease: Lease) -> GPU:
    values = {**gpu.__dict__, "holder": lease.holder, "until": lease.until}
    if gpu.state in ("free", "foreign"):
        values |= {"state": "leased", "reason": lazy_gettext("taken")}
    return GPU(**values)


def _is_free(gpu: GPU) -> bool:
    return gpu.state == "free" and bool(gpu.uuid)


def by_model(gpus: Sequence[GPU]) -> list[list[GPU]]:
    """Return the GPUs of each model, in the order in which the models come first."""
    return [
        [gpu for gpu in gpus if gpu.model == model]
        for model in dict.fromkeys(g.model for g in gpus)
    ]


def _runs(gpus: Sequence[GPU]) -> list[list[GPU]]:
    """Split GPUs sorted by index into runs of direct neighbours."""
    runs: list[list[GPU]] = []
    for gpu in gpus:
        if runs and runs[-1][-1].index + 1 == gpu.index:
            runs[-1].append(gpu)
        else:
            runs.append([gpu])
    return runs


def _rank(runs: Sequence[Sequence[GPU]]) -> Callable[[GPU], tuple[int, int]]:
    place = {gpu.index: number for number, run in enumerate(runs) for gpu in run}
    return lambda gpu: (place[gpu.index], gpu.index)


def gpus_words(number: int, model: str | None = None) -> str:
    """Return "2 GPUs", or "2 NVIDIA A100 GPUs" where a model is named."""
    if model:
        return lazy_ngettext("%(num)s %(model)s GPU", "%(num)s %(model)s GPUs", number, model=model)
    return lazy_ngettext("%(num)s GPU", "%(num)s GPUs", number)
