"""The addresses to which messages go, as an administrator writes them: Apprise's URLs.

They have passwords and tokens in them, so no log line and no page has more of one than its scheme.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

USERNAME = "{username}"
# Apprise splits and unquotes what is in a URL, so that another name could add a recipient, or name
# another folder of a host.
_SAFE_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]+")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://.")
_WORD = re.compile(r"\{([A-Za-z_]+)\}")


def check(addresses: Any) -> tuple[str, ...]:
    """Return an administrator's addresses.

    Args:
        addresses: the value of `notify_urls`, where it isn't a function; or what that returned.

    Raises:
        ValueError: they aren't addresses; the message has none of them in it.
    """
    if isinstance(addresses, str):
        addresses = [addresses]
    if not isinstance(addresses, Collection) or isinstance(addresses, bytes | dict):
        raise ValueError(f"must be a list of Apprise's URLs, not {type(addresses).__name__}")
    found = tuple(addresses)
    for number, each in enumerate(found, 1):
        if not isinstance(each, str) or not _ADDRESS.match(each):
            raise ValueError(f"address {number} isn't an Apprise URL as mailto://…")
        if others := [word for word in _WORD.findall(each) if f"{{{word}}}" != USERNAME]:
            raise ValueError(
                f"address {number} ({shown(each)}) has {{{others[0]}}}, and only {USERNAME} is "
                "filled in"
            )
    return found


def filled(addresses: Sequence[str], name: str) -> tuple[list[str], bool]:
    """Fill in a user's name; return the addresses, and whether any is left out.

    One with the name in it is left out for who has a name that could mean something else there.

    Args:
        addresses: as `check` returns them.
        name: the user's.
    """
    is_safe = bool(_SAFE_NAME.fullmatch(name))
    usable = [each for each in addresses if is_safe or USERNAME not in each]
    return [each.replace(USERNAME, name) for each in usable], len(usable) < len(addresses)


def shown(address: str) -> str:
    """Return of an address what may be shown: "slack://…"."""
    match = _ADDRESS.match(address)
    return f"{match[1].lower()}://…" if match else "an address without a scheme"
