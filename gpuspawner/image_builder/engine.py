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
    """Yield a client of the engine that DOCKER_HOST names, else of the machine's own.

    Raises:
        BuildingError: it doesn't answer, or refuses a call in the context.
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
    """Remove an image if it has no tag; return whether it is gone.

    Removal by id would also remove an image's only tag, which somebody may use.
    """
    try:
        if client.images.get(image_id).tags:
            return False
        client.images.remove(image_id)
    except docker.errors.NotFound:
        return True
    except docker.errors.APIError:  # a container uses it
        return False
    return True


def image(client: docker.DockerClient, reference: str) -> docker.models.images.Image | None:
    """Return an image of the engine; None if it isn't there."""
    try:
        return client.images.get(reference)
    except docker.errors.NotFound:
        return None
