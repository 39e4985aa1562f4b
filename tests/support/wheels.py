"""Packages for users to install, without a network."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

# Arguments of an installer, for what `hand_over` has put there.
FROM_TEST = "--no-index --find-links /tmp/wheels --quiet"


def wheel(
    name: str, code: str, version: str = "1.0", needs: Iterable[str] = (), module: str = ""
) -> tuple[str, bytes]:
    """Return a package of one module, as (file name, content)."""
    content, info = io.BytesIO(), f"{name}-{version}.dist-info"
    needed = "".join(f"Requires-Dist: {each}\n" for each in needs)
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(f"{module or name}/__init__.py", code)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", content.getvalue()


def hand_over(engine: Any, container: str, wheels: Mapping[str, bytes]) -> None:
    """Put packages into a container, as an index that is all there is.

    Args:
        engine: a client of its engine.
        container: its id.
        wheels: file name -> content.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in wheels.items():
            entry = tarfile.TarInfo(f"wheels/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    engine.put_archive(container, "/tmp", packed.getvalue())
