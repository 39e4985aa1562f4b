"""An image of a shell and a few small programs of this machine, for a user who isn't root."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import docker

IMAGE = "gpuspawner-test/shell:1"
USER = 1000
PROGRAMS = ("sh", "cat", "chmod", "find", "id", "mkdir", "rm", "rmdir", "sleep", "stat")


def archive() -> bytes:
    """Return the image's files as a tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        libraries: set[str] = set()
        for name in PROGRAMS:
            file = shutil.which(name)
            assert file
            _add(tar, f"bin/{name}", file)
            listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=True)
            libraries |= set(re.findall(r"(/\S+) \(0x", listed.stdout))
        for each in sorted(libraries):
            _add(tar, each.lstrip("/"), each)
    return packed.getvalue()


def _add(tar: tarfile.TarFile, name: str, file: str) -> None:
    data = Path(file).read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o755
    tar.addfile(entry, io.BytesIO(data))


def load(clients: list[docker.APIClient]) -> None:
    """Put the same image on several engines."""
    repository, tag = IMAGE.split(":")
    first, *others = clients
    changes = [f"USER {USER}", "ENV PATH=/bin"]
    first.import_image_from_data(archive(), repository, tag, changes=changes)
    saved = b"".join(first.get_image(IMAGE))
    for client in others:
        for _ in client.load_image(saved):
            pass
