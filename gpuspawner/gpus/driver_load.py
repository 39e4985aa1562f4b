"""Which load of NVIDIA's driver this is: it changes when the driver is loaded anew."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
MODULE = Path("/sys/module/nvidia")


def driver_load(boot: Path = BOOT, module: Path = MODULE) -> str:
    """Return "BOOT:MODULE", each "" where it isn't known; the same inside and outside a container.

    BOOT is the kernel's id of this boot, MODULE the inode of the driver's module in sysfs, of which
    the kernel numbers each anew.

    ref: random(4), sysfs(5)
    """
    parts = ["", ""]
    with suppress(OSError, ValueError):
        parts[0] = boot.read_text().strip().replace(":", "")
    with suppress(OSError):
        parts[1] = str(module.stat().st_ino)
    return ":".join(parts)
