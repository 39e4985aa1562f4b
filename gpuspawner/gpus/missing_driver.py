"""The reasons for a missing NVIDIA driver: no GPU, no driver, or a container without GPUs.

No engine is asked: a process finds the id of its own container in its mounts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
MOUNTS = Path("/proc/self/mountinfo")
# ref: https://pci-ids.ucw.cz; class 03 is a display controller, 0x0302 a GPU without a screen
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"
# The engine mounts these files in each container from a folder whose name is the container's id,
# even if the container has the host's network, and with it the host's name.
_OWN_FILE = re.compile(r"/containers/([0-9a-f]{64})/\S+ /etc/(?:hostname|hosts|resolv\.conf) ")

# It only watches them: with the label no hub takes them for given away.
GIVE_GPUS = (
    "start the hub's container with `--gpus all,capabilities=utility --label gpuspawner.gpus=` "
    "(for a compose file: docs/how-to/hub-in-container.md)"
)


def own_container_id() -> str:
    """Return the id of the Docker container that this process runs in; "" if it runs in none."""
    try:
        found = _OWN_FILE.search(MOUNTS.read_text(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""


def nvidia_boards(devices: Path | None = None) -> int:
    """Return the number of NVIDIA display controllers on the PCI bus, with or without a driver.

    Args:
        devices: the kernel's folder of PCI devices; None: /sys/bus/pci/devices, in which containers
            see all of the host's.
    """
    found = 0
    folder = devices or PCI_DEVICES
    for device in folder.iterdir() if folder.is_dir() else ():
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS)
    return found


@dataclass(frozen=True)
class NoDriver:
    """The reason for a missing driver.

    Args:
        words: the reason, as a sentence for administrators.
        is_wrong: whether the machine has GPUs.
        in_container: whether the reason is that this process's container was given no GPUs.
    """

    words: str
    is_wrong: bool
    in_container: bool

    @property
    def is_error(self) -> bool:
        """Whether this is anything but a machine without GPUs."""
        return self.is_wrong or self.in_container


def without_driver() -> NoDriver:
    """Return the reason for a missing driver; the caller has found none."""
    boards, own = nvidia_boards(), own_container_id()
    if own:
        there = f"This machine has {boards} NVIDIA GPU(s), and the" if boards else "The"
        words = f"{there} hub's container {own[:12]} was given none: {GIVE_GPUS}."
        return NoDriver(words, boards > 0, True)
    if boards:
        words = f"This machine has {boards} NVIDIA GPU(s) and no driver: see `gpuspawner doctor`."
        return NoDriver(words, True, False)
    return NoDriver("No NVIDIA driver on this machine.", False, False)
