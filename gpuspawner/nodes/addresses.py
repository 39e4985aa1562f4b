"""Where nodes are and how they prove who they are, in one file in the hub's folder."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import GPUSpawnerError
from ..untrusted import parse_json

# The folder with the hub's own key and the nodes that it knows, in the hub's working folder.
FOLDER = "gpuspawner_nodes"
# Names that folder where it is another one, as on a simulated cluster.
FOLDER_VARIABLE = "GPUSPAWNER_NODES"
NODES_FILE = "nodes.json"
# Not registered for anything else. ref: IANA's registry of ports
DEFAULT_PORT = 8413
MAX_NODES = 1000
MAX_NAME = 63

# As hostnames are written, which is what Swarm calls its nodes. ref: RFC 1123, 2.1
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class AddressError(GPUSpawnerError):
    """An address or a list of them is wrong. `str()` is a sentence for administrators."""


@dataclass(frozen=True)
class NodeAddress:
    """A node as a hub knows it.

    Args:
        name: its name for people, which is its hostname; no two nodes have the same.
        host: where its daemon listens: a name or an address.
        port: the daemon's port.
        fingerprint: SHA-256 of the daemon's certificate, 64 hexadecimal digits.
    """

    name: str
    host: str
    port: int
    fingerprint: str


def hub_folder(working: Path = Path()) -> Path:
    """Return the folder with a hub's key and the nodes that it knows.

    Args:
        working: the hub's working folder.
    """
    return working / (os.environ.get(FOLDER_VARIABLE) or FOLDER)


def checked(address: NodeAddress) -> NodeAddress:
    """Return an address if each part of it can be one; raises `AddressError`."""
    if not _NAME.fullmatch(address.name):
        raise AddressError(f"{address.name!r} isn't the name of a machine.")
    if not is_host(address.host):
        raise AddressError(f"{address.host!r} is neither a machine's name nor an address.")
    if not 0 < address.port < 65536:
        raise AddressError(f"{address.port} is no port.")
    if not _FINGERPRINT.fullmatch(address.fingerprint):
        raise AddressError(f"{address.fingerprint!r} isn't a certificate's fingerprint.")
    return address


def is_host(text: str) -> bool:
    """Return whether a text is a machine's name or an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and all(map(_NAME.fullmatch, text.rstrip(".").split(".")))
    return True


def read_addresses(folder: Path) -> tuple[NodeAddress, ...]:
    """Return the nodes that the file in a hub's folder names; () if there is none.

    Raises:
        AddressError: the file can't be read or isn't one.
    """
    file = folder / NODES_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise AddressError(f"{file} can't be read: {error}") from None
    try:
        found = tuple(map(_read, parse_json(text)["nodes"]))
    except (AddressError, KeyError, TypeError, ValueError) as error:
        raise AddressError(f"{file} isn't a list of machines: {error}") from None
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise AddressError(f"{file} names {twice[0]} twice.")
    if len(found) > MAX_NODES:
        raise AddressError(f"{file} names more than {MAX_NODES} machines.")
    return found


def _read(value: Mapping[str, Any]) -> NodeAddress:
    name, host, port = value["name"], value["host"], value["port"]
    fingerprint = value["fingerprint"]
    if not all(isinstance(text, str) for text in (name, host, fingerprint)) or (
        type(port) is not int
    ):
        raise TypeError("a text or a port is neither")
    return checked(NodeAddress(name, host, port, fingerprint))


def add_address(folder: Path, address: NodeAddress) -> None:
    """Write a node into the file in a hub's folder, in place of one of the same name.

    Raises:
        AddressError: the address is wrong, or the file isn't a list of nodes.
        OSError: the file can't be written.
    """
    checked(address)
    _change(folder, lambda known: [*(e for e in known if e.name != address.name), address])


def remove_address(folder: Path, name: str) -> bool:
    """Take a node out of the file in a hub's folder; return whether it was there.

    Raises:
        AddressError: the file isn't a list of nodes.
        OSError: the file can't be written.
    """
    if all(each.name != name for each in read_addresses(folder)):
        return False
    _change(folder, lambda known: [each for each in known if each.name != name])
    return True


def _change(folder: Path, change: Callable[[Iterable[NodeAddress]], Iterable[NodeAddress]]) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        # Two invitations may be taken up at once.
        fcntl.flock(opened, fcntl.LOCK_EX)
        nodes = sorted(change(read_addresses(folder)), key=lambda each: each.name)
        text = json.dumps({"nodes": [asdict(each) for each in nodes]}, indent=2) + "\n"
        replace_file(folder / NODES_FILE, text.encode(), 0o644)
    finally:
        os.close(opened)


def replace_file(file: Path, content: bytes, mode: int) -> None:
    """Replace a file at once: who reads it finds the old content or the new one.

    Raises:
        OSError: it can't be written, and is as it was.
    """
    descriptor, made = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        Path(made).chmod(mode)
        Path(made).replace(file)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
