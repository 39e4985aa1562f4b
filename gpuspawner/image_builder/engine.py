"""The Docker Engine that images are built on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import docker
import docker.errors
import docker.models.images
import requests

from .recipe import BuildingError

ANSWER_SECONDS = 300
DISK_FULL = "the disk is full where the Docker Engine keeps its images (see `docker system df`)"


@contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """Give a client of the engine that DOCKER_HOST names, or of the machine's own.

    Raises:
        BuildingError: it doesn't answer, or refuses something inside the block.
    """
    try:
        client = docker.from_env(timeout=ANSWER_SECONDS)
        client.ping()
    except (docker.errors.DockerException, requests.RequestException):
        raise BuildingError(
            "the Docker Engine can't be reached: is it running, and does DOCKER_HOST name it?"
        ) from None
    with closing(client):
        try:
            yield client
        except (docker.errors.APIError, requests.RequestException) as error:
            said = str(getattr(error, "explanation", None) or error)
            if "no space left" in said:
                raise BuildingError(DISK_FULL) from None
            raise BuildingError(f"the Docker Engine refused: {said}") from None


def remove_unnamed(client: docker.DockerClient, image_id: str) -> bool:
    """Remove an image that has no name any more; return whether it is gone.

    By its id the engine would take the last tag that somebody gave it, too.
    """
    try:
        if client.images.get(image_id).tags:
            return False
        client.images.remove(image_id)
    except docker.errors.NotFound:
        return True
    except docker.errors.APIError:  # a container runs on it
        return False
    return True


def image(client: docker.DockerClient, reference: str) -> docker.models.images.Image | None:
    """Return an image that is on the engine; None where it isn't."""
    try:
        return client.images.get(reference)
    except docker.errors.NotFound:
        return None
