"""What a GPU's health reads as: the names of what can be read of it, without what follows.

ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlFieldValueEnums.html
"""

from __future__ import annotations

from dataclasses import dataclass

LOST = "lost"
RESET_REQUIRED = "reset-required"
# NVML doesn't answer for it, and doesn't say why. It may be lost.
UNREACHABLE = "unreachable"
REMAP_FAILED = "remap-failed"
REMAP_PENDING = "remap-pending"
PAGES_PENDING = "pages-pending"
# Memory errors that couldn't be corrected, since the driver was loaded.
ECC_ERRORS = "ecc-errors"
RECOVERY_RESET = "recovery-reset"
RECOVERY_REBOOT = "recovery-reboot"
RECOVERY_DRAIN_P2P = "recovery-drain-p2p"
RECOVERY_DRAIN_RESET = "recovery-drain-and-reset"
RECOVERY_OTHER = "recovery-other"
FABRIC_SETTING_UP = "fabric-setting-up"
FABRIC_FAILED = "fabric-failed"
HOT = "hot"
POWER_BRAKE = "power-brake"

# The recovery action, by NVML's numbers; 0 is none.
RECOVERY = {
    1: RECOVERY_RESET,
    2: RECOVERY_REBOOT,
    3: RECOVERY_DRAIN_P2P,
    4: RECOVERY_DRAIN_RESET,
    6: RECOVERY_RESET,
    7: RECOVERY_REBOOT,
}
# What is told together.
OF_ROWS = frozenset({REMAP_FAILED, REMAP_PENDING})
OF_PAGES = frozenset({PAGES_PENDING})
OF_ECC = frozenset({ECC_ERRORS})
OF_RECOVERY = frozenset({*RECOVERY.values(), RECOVERY_OTHER})
OF_FABRIC = frozenset({FABRIC_SETTING_UP, FABRIC_FAILED})
OF_CLOCKS = frozenset({HOT, POWER_BRAKE})
# Repairs of its memory, made by its next reset or the next load of the driver.
REPAIRS = frozenset({REMAP_PENDING, PAGES_PENDING})
# With these it is reset, or the machine restarted, which takes that no program has it open.
WAIT_FOR_RESET = REPAIRS | OF_RECOVERY
ALL_TOLD = OF_ROWS | OF_PAGES | OF_ECC | OF_RECOVERY | OF_FABRIC | OF_CLOCKS


@dataclass(frozen=True)
class HealthReading:
    """What one reading says of a GPU's health.

    Args:
        causes: what is the case, of the names above.
        unread: what isn't told: by this GPU or driver, or now. It isn't clear then.
        answers: whether NVML answers for the GPU at all.
    """

    causes: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    answers: bool = True


NOTHING = HealthReading()
