"""Compatibility of image versions with nodes: driver versions and GPU architectures.

NVIDIA publishes two driver versions for a CUDA release. Every CUDA release of a major version runs
on that major's oldest driver or newer. On drivers older than the one that the release came with,
the release's new features are missing. Whatever isn't known rules nothing out.

ref: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..gpus.model import GPU, Node
from ..i18n.lazy_text import lazy_gettext, listed
from .catalogue import ImageVersion

# CUDA major version -> the oldest Linux driver that runs any release of it.
# ref: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
MIN_DRIVER: Mapping[str, str] = MappingProxyType(
    {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
)
# CUDA release -> the Linux driver that it came with. Same reference.
TOOLKIT_DRIVER: Mapping[str, str] = MappingProxyType(
    {
        "11.8": "520.61.05",
        "12.0": "525.60.13",
        "12.1": "530.30.02",
        "12.2": "535.54.03",
        "12.3": "545.23.06",
        "12.4": "550.54.14",
        "12.5": "555.42.02",
        "12.6": "560.28.03",
        "12.8": "570.26",
        "12.9": "575.51.03",
        "13.0": "580.65.06",
        "13.1": "590.44.01",
        "13.2": "595.45.04",
    }
)


@dataclass(frozen=True)
class Fit:
    """The GPUs of some nodes that an image version runs on.

    `models` are the GPU models that it runs on; None if it runs on all. If that depends on the
    node, `places` are the pairs (node name, model) that it runs on; None if it doesn't. `reason`
    says why it can use no GPU at all, `note` which features are missing; both are continuations of
    a sentence that begins with the version's name.
    """

    models: frozenset[str] | None = None
    reason: str = ""
    note: str = ""
    places: frozenset[tuple[str, str]] | None = None

    def takes(self, model: str) -> bool:
        """Return whether the version runs on GPUs of a model on at least one node."""
        return not self.reason and (self.models is None or model in self.models)


def fit(version: ImageVersion | None, driver: str | None, gpus: Iterable[GPU]) -> Fit:
    """Return on which of one node's GPUs an image version runs.

    Args:
        version: the version; None for an image that isn't in the catalogue.
        driver: the node's driver version, "570.133.20"; None if it has no driver.
        gpus: the node's GPUs that may be handed out, now or later.
    """
    if version is None or driver is None:
        return Fit()
    needed = min_driver_of(version)
    if _older(driver, needed):
        reason = lazy_gettext(
            "needs driver %(needed)s or newer, this machine has %(driver)s",
            needed=needed,
            driver=driver,
        )
        return Fit(frozenset(), reason)
    if not version.compute_capabilities:
        return Fit(note=_note_missing_features(version, driver))
    node = list(gpus)
    others = _not_built_for(version, driver, node)
    models = frozenset(gpu.model for gpu in node) - set(others)
    if others and not models:
        reason = lazy_gettext(
            "isn't built for this machine's %(models)s", models=_models_phrase(others)
        )
        return Fit(models, reason)
    missing = _note_missing_features(version, driver)
    if not others:
        return Fit(models, note=missing)
    not_on = lazy_gettext("doesn't run on this machine's %(models)s", models=_models_phrase(others))
    return Fit(models, note=_joined(not_on, missing))


def fit_nodes(version: ImageVersion | None, nodes: Sequence[Node]) -> Fit:
    """Return on which GPUs of several nodes an image version runs.

    Args:
        version: the version; None for an image that isn't in the catalogue.
        nodes: the nodes, with only those GPUs that may be handed out, now or later.
    """
    if len(nodes) <= 1:
        node = nodes[0] if nodes else Node()
        return fit(version, node.driver, node.gpus)
    nodes = [node for node in nodes if node.gpus]
    there = {(node.name, gpu.model) for node in nodes for gpu in node.gpus}
    fits = {node.name: fit(version, node.driver, node.gpus) for node in nodes}
    places = frozenset((name, model) for name, model in there if fits[name].takes(model))
    if version is None or (places == there and not any(each.note for each in fits.values())):
        return Fit()
    if not places:
        return Fit(frozenset(), _explain_nowhere(version, nodes))
    models = frozenset(model for _, model in places)
    note = _joined(
        _note_not_everywhere(version, nodes, models, places == there),
        _note_missing_features_somewhere(version, nodes),
    )
    if places == there:
        return Fit(note=note)
    by_model = {(name, model) for name, model in there if model in models}
    return Fit(models, note=note, places=None if places == by_model else places)


def _explain_nowhere(version: ImageVersion, nodes: Sequence[Node]) -> str:
    """Return the reason why a version runs on none of several nodes."""
    needed = min_driver_of(version)
    new_enough = [node for node in nodes if not _older(node.driver, needed)]
    if not new_enough:
        return lazy_gettext(
            "needs driver %(needed)s or newer, and the newest here is %(driver)s",
            needed=needed,
            driver=max((node.driver or "" for node in nodes), key=_numbers),
        )
    models = _models_phrase(_not_built_for_any(version, new_enough))
    if len(new_enough) == len(nodes):
        return lazy_gettext("isn't built for the %(models)s here", models=models)
    return lazy_gettext(
        "needs driver %(needed)s or newer, and where there is one it isn't built for %(models)s",
        needed=needed,
        models=models,
    )


def _note_not_everywhere(
    version: ImageVersion, nodes: Sequence[Node], models: Collection[str], is_everywhere: bool
) -> str:
    """Return a note on which GPUs a version doesn't run; "" if it runs on all.

    Args:
        models: the models that it runs on.
        is_everywhere: whether it runs on all GPUs.
    """
    if is_everywhere:
        return ""
    others = _not_built_for_any(version, nodes)
    nowhere = {model: has for model, has in others.items() if model not in models}
    if nowhere:
        return lazy_gettext("doesn't run on the %(models)s here", models=_models_phrase(nowhere))
    return lazy_gettext("doesn't run on every machine here")


def _note_missing_features_somewhere(version: ImageVersion, nodes: Sequence[Node]) -> str:
    own, needed = toolkit_driver_of(version), min_driver_of(version)
    drivers = [node.driver for node in nodes if not _older(node.driver, needed)]
    if not any(_older(driver, own) for driver in drivers):
        return ""
    return lazy_gettext(
        "made for driver %(own)s, and where it is older new CUDA features are missing", own=own
    )


def _not_built_for_any(version: ImageVersion, nodes: Iterable[Node]) -> dict[str, str | None]:
    others: dict[str, str | None] = {}
    for node in nodes:
        others |= _not_built_for(version, node.driver, node.gpus)
    return others


def _not_built_for(
    version: ImageVersion, driver: str | None, gpus: Iterable[GPU]
) -> dict[str, str | None]:
    """Return model -> compute capability of the GPU models that a version isn't built for."""
    if driver is None:
        return {}
    # A model is left out if the version isn't built for one of its GPUs.
    return {g.model: g.compute_capability for g in gpus if not _runs_on(version, driver, g)}


def _joined(first: str, second: str) -> str:
    if first and second:
        return lazy_gettext("%(first)s; %(second)s", first=first, second=second)
    return first or second


def min_driver_of(version: ImageVersion) -> str:
    """Return the oldest driver on which a version's CUDA starts; "" if unknown."""
    return version.min_driver or MIN_DRIVER.get(_release(version.cuda).partition(".")[0], "")


def toolkit_driver_of(version: ImageVersion) -> str:
    """Return the driver that a version's CUDA release came with; "" if unknown."""
    return version.toolkit_driver or TOOLKIT_DRIVER.get(_release(version.cuda), "")


def _note_missing_features(version: ImageVersion, driver: str) -> str:
    own = toolkit_driver_of(version)
    if not _older(driver, own):
        return ""
    return lazy_gettext(
        "made for driver %(own)s, with this machine's %(driver)s new CUDA features are missing",
        own=own,
        driver=driver,
    )


def _runs_on(version: ImageVersion, driver: str, gpu: GPU) -> bool:
    """Return whether a version's framework runs on a GPU.

    Machine code runs on GPUs of the same major and the same or a newer minor compute capability.
    PTX runs on anything newer, if the driver is at least as new as the toolkit that made it.
    ref: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities
    """
    if gpu.compute_capability is None:
        return True
    has = _numbers(gpu.compute_capability)
    for entry in version.compute_capabilities:
        number, _, ptx = entry.partition("+")
        built = _numbers(number)
        if has >= built and has[0] == built[0]:
            return True
        if ptx and has >= built and not _older(driver, toolkit_driver_of(version)):
            return True
    return False


def _older(driver: str | None, than: str) -> bool:
    return driver is not None and bool(than) and _numbers(driver) < _numbers(than)


def _release(cuda: str) -> str:
    """Return the CUDA release of a version: "12.6" for "12.6.3"."""
    found = re.match(r"[0-9]+\.[0-9]+", cuda)
    return found.group() if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _models_phrase(models: Mapping[str, str | None]) -> str:
    first, *more = sorted(models.items())
    model, has = first
    words: str = lazy_gettext("%(model)s (compute capability %(has)s)", model=model, has=has)
    for model, has in more:
        words = listed([words, f"{model} ({has})"], "or")
    return words
