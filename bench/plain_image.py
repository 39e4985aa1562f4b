"""The image for comparison: our image without what makes servers start quickly."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import docker

from gpuspawner.image_builder import buildkit
from gpuspawner.image_builder.engine import image
from gpuspawner.image_builder.recipe import image_folder, network_files, proxy_arguments

REFERENCE = "gpuspawner/bench:plain"
# The id of the image that it was made from.
LABEL = "gpuspawner.bench.from"


def ensure(client: docker.DockerClient, finished: str) -> str:
    """Return the image's reference; build it if it is missing or made from another image.

    Args:
        client: a client of the engine.
        finished: the reference of the image that it is made from.

    Raises:
        buildkit.BuildFailed: it can't be built.
    """
    base = client.images.get(finished)
    before = image(client, REFERENCE)
    if before is not None and before.labels.get(LABEL) == base.id:
        return REFERENCE
    excluded = re.findall(r"^[\w-]+", (image_folder() / "excludes.txt").read_text(), re.MULTILINE)
    arguments = {"BASE": finished, "EXCLUDED": " ".join(excluded), **proxy_arguments()}
    built = buildkit.build(client, _parcel(), arguments, {LABEL: str(base.id)}, lambda _: None)
    client.images.get(built).tag(REFERENCE)
    if before is not None:
        client.images.remove(str(before.id))
    return REFERENCE


def _parcel() -> bytes:
    """Return the build context: the Dockerfile and this machine's network settings."""
    files = {
        "Dockerfile": (Path(__file__).parent / "Dockerfile").read_bytes(),
        "network/network.sh": (image_folder() / "steps" / "network.sh").read_bytes(),
        **{f"network/{name}": content for name, content in network_files().items()},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as parcel:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            parcel.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
