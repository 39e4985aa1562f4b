"""Builds by the engine's API with BuildKit, and their progress.

Why not the `docker` program: a host may have none (a hub in a container), an old one (20.10, with
BuildKit behind a variable) or one without the buildx plug-in, which then can't use BuildKit at all.
Why not docker-py's `build`: it asks for the classic builder, whose only ways to hand a CA bundle to
a step (COPY, ARG) leave it in the image or its history. The engine takes `version=2` with the
context as the body, and needs no session as long as the base image is already there. (With images
in containerd's store that works since version 28, ref: https://github.com/moby/moby/pull/49178)

ref: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Image/operation/ImageBuild
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import docker
import requests

from ..untrusted import parse_json

# Lines kept of a step's output, to say why it failed.
KEPT_LINES = 60


class BuildFailed(Exception):
    """A build failed.

    Args:
        message: the engine's error message.
        lines: the last lines of the failed step's output.
    """

    def __init__(self, message: str, lines: list[str]) -> None:
        super().__init__(message)
        self.lines = lines


def build(
    client: docker.DockerClient,
    parcel: bytes,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    report: Callable[[str], None],
    dockerfile: str = "Dockerfile",
) -> str:
    """Build an image and return its id. It gets no tag, so that it isn't used before its checks.

    Args:
        client: a client of the engine.
        parcel: the build context, a tar archive.
        arguments: the build arguments.
        labels: the image's labels.
        report: called with each line of the steps' output.
        dockerfile: the Dockerfile's path in the build context.

    Raises:
        BuildFailed: a step failed, or the engine refused.
    """
    parameters = {
        "version": "2",
        "dockerfile": dockerfile,
        "buildargs": json.dumps(dict(arguments)),
        "labels": json.dumps(dict(labels)),
        "rm": "1",
    }
    api = client.api
    try:
        response = api.post(
            f"{api.base_url}/v{api.api_version}/build",
            params=parameters,
            data=parcel,
            headers={"Content-Type": "application/x-tar"},
            stream=True,
            timeout=(30, None),  # a step that downloads or compiles may be silent for minutes
        )
        if not response.ok:
            raise BuildFailed(response.text.strip(), [])
        return _follow(_messages(response), report)
    except requests.RequestException as error:
        raise BuildFailed(f"the Docker Engine broke off the build: {error}", []) from None


def _messages(response: requests.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line:
            yield parse_json(line)


def _follow(messages: Iterator[dict[str, Any]], report: Callable[[str], None]) -> str:
    """Read a build's messages to the end; return the image's id, or raise BuildFailed."""
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    image_id, unfinished = None, ""
    for message in messages:
        if message.get("id") == "moby.buildkit.trace":
            text = log_text(base64.b64decode(message["aux"]))
        else:  # Podman answers as the classic builder does
            text = str(message.get("stream", ""))
        # A message may end in the middle of a line.
        *lines, unfinished = (unfinished + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            kept.append(line.rstrip())
            report(line.rstrip())
        if "error" in message:
            raise BuildFailed(str(message["error"]), [*kept, unfinished])
        built = re.search(r"Successfully built ([0-9a-f]{12,})", text)
        if message.get("id") == "moby.image.id":
            image_id = message["aux"]["ID"]
        elif built:
            image_id = built[1]
    if image_id is None:
        raise BuildFailed("the Docker Engine ended the build without an image", [*kept])
    return str(image_id)


def log_text(trace: bytes) -> str:
    """Return the output of steps in a progress message.

    It is a protobuf `StatusResponse`: its field 3 is a `VertexLog`, whose field 4 is the text.
    ref: https://github.com/moby/buildkit/blob/master/api/services/control/control.proto
    """
    texts = [
        text
        for number, log in fields(trace)
        if number == 3
        for inner, text in fields(log)
        if inner == 4
    ]
    return b"".join(texts).decode("utf-8", "replace")


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes) of each length-delimited field of a protobuf message; skip the others.

    ref: https://protobuf.dev/programming-guides/encoding/
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            return  # groups: no message of BuildKit has any


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at
