"""Whether an image version can use a host's GPUs: its CUDA's driver, its framework's architectures.

Two levels, as NVIDIA publishes them. Any CUDA of one major version runs on the drivers from that
major's floor on. With one older than the driver that the CUDA release came with, what is new in
that release is missing. Where something isn't known, nothing is ruled out.

ref: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..gpus.model import GPU
from ..i18n.lazy_text import lazy_gettext, listed
from .catalogue import ImageVersion

# CUDA major version -> the oldest Linux driver that runs any release of it.
# ref: https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
FLOOR: Mapping[str, str] = MappingProxyType(
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
    """What a version can do with a host's GPUs.

    `models` are the GPU models it runs on, None where that isn't restricted. `reason` says why it
    can use no GPU at all, and `note` what is missing where it can; both go on from its name.
    """

    models: frozenset[str] | None = None
    reason: str = ""
    note: str = ""

    def takes(self, model: str) -> bool:
        """Return whether the version runs on GPUs of a model."""
        return not self.reason and (self.models is None or model in self.models)


def fit(version: ImageVersion | None, driver: str | None, gpus: Iterable[GPU]) -> Fit:
    """Return what a version can do with these GPUs.

    Args:
        version: None for an image of which nothing is known.
        driver: the host's driver version, "570.133.20"; None on a host without one.
        gpus: those that may be handed out, now or later.
    """
    if version is None or driver is None:
        return Fit()
    needed = lowest_driver(version)
    if _older(driver, needed):
        reason = lazy_gettext(
            "needs driver %(needed)s or newer, this machine has %(driver)s",
            needed=needed,
            driver=driver,
        )
        return Fit(frozenset(), reason)
    if not version.compute_capabilities:
        return Fit(note=_missing_features(version, driver))
    host = list(gpus)
    # Of one model, one GPU that the version isn't built for is enough to leave the model out.
    others = {g.model: g.compute_capability for g in host if not _runs_on(version, driver, g)}
    models = frozenset(gpu.model for gpu in host) - set(others)
    if others and not models:
        reason = lazy_gettext("isn't built for this machine's %(models)s", models=_named(others))
        return Fit(models, reason)
    missing = _missing_features(version, driver)
    if not others:
        return Fit(models, note=missing)
    not_on = lazy_gettext("doesn't run on this machine's %(models)s", models=_named(others))
    both = lazy_gettext("%(first)s; %(second)s", first=not_on, second=missing)
    return Fit(models, note=both if missing else not_on)


def lowest_driver(version: ImageVersion) -> str:
    """Return the driver below which a version's CUDA doesn't start; "" where that isn't known."""
    return version.min_driver or FLOOR.get(_release(version.cuda).partition(".")[0], "")


def own_driver(version: ImageVersion) -> str:
    """Return the driver that a version's CUDA release came with; "" where that isn't known."""
    return version.toolkit_driver or TOOLKIT_DRIVER.get(_release(version.cuda), "")


def _missing_features(version: ImageVersion, driver: str) -> str:
    own = own_driver(version)
    if not _older(driver, own):
        return ""
    return lazy_gettext(
        "made for driver %(own)s, with this machine's %(driver)s new CUDA features are missing",
        own=own,
        driver=driver,
    )


def _runs_on(version: ImageVersion, driver: str, gpu: GPU) -> bool:
    """Return whether what the framework was built for runs on a GPU.

    Machine code runs on its own major version from its own minor version on. PTX is compiled for
    whatever is newer, by a driver that is as new as the toolkit that made it.
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
        if ptx and has >= built and not _older(driver, own_driver(version)):
            return True
    return False


def _older(driver: str, than: str) -> bool:
    return bool(than) and _numbers(driver) < _numbers(than)


def _release(cuda: str) -> str:
    """Return major and minor version of a catalogue's text: "12.6" of "12.6.3"."""
    found = re.match(r"[0-9]+\.[0-9]+", cuda)
    return found.group() if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _named(models: Mapping[str, str | None]) -> str:
    first, *more = sorted(models.items())
    model, has = first
    words: str = lazy_gettext("%(model)s (compute capability %(has)s)", model=model, has=has)
    for model, has in more:
        words = listed([words, f"{model} ({has})"], "or")
    return words
