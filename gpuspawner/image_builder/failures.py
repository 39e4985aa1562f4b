"""Explanations of failed builds, by the last lines of the failed step."""

from __future__ import annotations

import re

from .buildkit import BuildFailed
from .engine import DISK_FULL

# (pattern of a program's output, its meaning). The first match counts, so specific patterns come
# before vague ones. A group of the pattern fills the {} of the sentence.
REASONS = (
    (r"[Nn]o space left on device", DISK_FULL),
    (
        # ref: https://github.com/moby/moby/issues/47717
        r"failed to read downloaded context",
        "this Docker Engine keeps its images in containerd's store, and builds over its API only "
        "since version 28: update it, or build by hand as image/README.md says",
    ),
    (
        r"Hash mismatch for `?([\w.-]+(?:==[\w.+-]+)?)",
        "{} is not the file that the lock names: its hash differs. It was changed on the way or at "
        "the package index; don't use it",
    ),
    (
        r"the base image has (Python [\d.]+), the locks are for ([\d.]+)",
        "the base image has {}, the locks are for {}",
    ),
    (
        r"apt-get: (?:command )?not found|/bin/bash.*no such file",
        "the base image has no apt-get or bash: it must be Debian or made from it",
    ),
    (
        r"python3: (?:command )?not found",
        "the base image has no Python and its distribution gave none",
    ),
    (
        r"(?i)certificate verify failed|UnknownIssuer|self.signed certificate|"
        r"invalid peer certificate",
        "a TLS certificate isn't trusted: where a proxy inspects TLS, set SSL_CERT_FILE to the CA "
        "bundle and build again",
    ),
    (
        r"Failed to fetch|Unable to fetch some archives|Could not resolve '|Failed to download|"
        r"Failed to fetch:|error sending request|dns error|Temporary failure in name resolution|"
        r"Network is unreachable|Connection refused|Could not find a version that satisfies",
        "packages can't be fetched: the package index or the distribution's mirror can't be "
        "reached from the engine's containers, or hasn't got them (http_proxy, https_proxy and "
        "UV_DEFAULT_INDEX are handed to the build)",
    ),
    (
        r"Unable to locate package (\S+)",
        "the base image's distribution has no package {}",
    ),
)


def explain_failure(failure: BuildFailed) -> str:
    """Return why a build failed, as a sentence: a known reason, else the step's last line."""
    text = "\n".join([*failure.lines, str(failure)])
    for pattern, meaning in REASONS:
        found = re.search(pattern, text)
        if found:
            return meaning.format(*found.groups())
    last = next((line for line in reversed(failure.lines) if line.strip()), str(failure))
    return f"a step failed: {last.strip()}"
