"""The image versions on the engines of the tests, each built once for all of them.

Every worker of a run has an engine of its own. What one has built, the others load: that takes a
few seconds, where a build takes minutes.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import docker

from gpuspawner.__main__ import main
from gpuspawner.image_builder.base import MADE, PULLED
from gpuspawner.image_builder.command import LABEL_INPUTS
from gpuspawner.image_builder.engine import image, remove_unnamed
from gpuspawner.image_builder.recipe import recipe
from gpuspawner.simulation.host import SimulatedHost, cache_folder


def engines_cache() -> Path:
    """Return the folder of the tests' engines, who remove every volume that they find."""
    return cache_folder() / "tests"


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Held by one process of all, while an image is built or loaded or a root is made."""
    engines_cache().mkdir(parents=True, exist_ok=True)
    lock = os.open(engines_cache() / f"{what}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def ensure_image(host: SimulatedHost, key: str, *, shared: bool = True) -> None:
    """Have an image version on a host's engine: as it is there, as another built it, or anew.

    `shared` keeps what was built for the engines of other workers.
    """
    wanted = recipe(key)
    inputs = f"{wanted.fingerprint()}@"
    reference = wanted.version.image
    archive, label = engines_cache() / f"{key}.tar", engines_cache() / f"{key}.inputs"
    with (
        one_at_a_time("images"),
        closing(docker.DockerClient(host.docker_host, timeout=600)) as client,
    ):
        kept = label.exists() and label.read_text() == inputs
        there = image(client, reference)
        if there is None or there.labels.get(LABEL_INPUTS) != inputs:
            if kept:
                with archive.open("rb") as file:
                    client.images.load(file)
                if there is not None:
                    remove_unnamed(client, str(there.id))
            else:
                assert main(["image", "build", key]) == 0
        if shared and not kept and "PYTEST_XDIST_WORKER" in os.environ:
            label.unlink(missing_ok=True)
            _save(host, client, reference, archive)
            label.write_text(inputs)


def _save(host: SimulatedHost, client: docker.DockerClient, reference: str, archive: Path) -> None:
    # With its base, on which some tests build more. docker-py writes one image to a file.
    bases = [each for each in (MADE, PULLED) if image(client, each) is not None]
    words = ["docker", "save", "--output", str(archive), reference, *bases]
    subprocess.run(words, env=host.environment, check=True)
