"""The catalogue of image versions that users choose from."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..untrusted import parse_yaml

# A longer text is a mistake, and would break the form's layout.
MAX_TEXT = 200

# An image reference as the engine reads it: [domain/]name[:tag][@digest], or an image id.
# ref: https://pkg.go.dev/github.com/distribution/reference
_DIGEST = r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})"
_PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = rf"({_LABEL}(\.{_LABEL})*|\[[0-9a-fA-F:]+\])(:[0-9]+)?/"
_REFERENCE = re.compile(
    rf"({_DOMAIN})?{_PART}(/{_PART})*(:[\w][\w.-]{{0,127}})?(@{_DIGEST})?|{_DIGEST}", re.ASCII
)

# The engine refuses longer ones.
MAX_REFERENCE = 512

# A text that isn't a version would silently be no limit.
Driver = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)*)?$")]
# "8.0" for sm_80; "9.0+PTX" if the driver can compile it for newer GPUs, too.
Capability = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+(\+PTX)?$")]


class ImageVersion(BaseModel):
    """One catalogue entry. If only an image reference was configured, just `image` is set."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=MAX_TEXT)

    image: str
    title: str = ""
    description: str = ""
    framework: str = ""
    cuda: str = ""
    cudnn: str = ""
    nccl: str = ""
    python: str = ""
    # With an older driver CUDA doesn't start.
    min_driver: Driver = ""
    # The driver that the CUDA release came with.
    toolkit_driver: Driver = ""
    # The architectures that the framework was built for; empty: unknown, so all GPUs are allowed.
    compute_capabilities: tuple[Capability, ...] = ()
    size: str = ""
    # Why users shouldn't start new work with it; empty: it isn't deprecated.
    deprecated: str = ""
    default: bool = False

    def facts(self) -> str:
        """Return a summary in one line: "PyTorch 2.7.0 · CUDA 12.6 · Python 3.11 · 7.1 GB"."""
        known = [
            self.framework,
            f"CUDA {self.cuda}" if self.cuda else "",
            f"Python {self.python}" if self.python else "",
            self.size,
        ]
        return " · ".join(filter(None, known))


def is_reference(text: str) -> bool:
    """Return whether a text is an image reference as the engine reads it, or an image's id."""
    return len(text) <= MAX_REFERENCE and _REFERENCE.fullmatch(text) is not None


def catalogue(entries: Mapping[str, Any]) -> dict[str, ImageVersion]:
    """Check a configured catalogue (key -> image reference or mapping); return its versions.

    Raises:
        ValueError: an entry is invalid; the message names its key and field.
    """
    versions: dict[str, ImageVersion] = {}
    for key, entry in entries.items():
        if not isinstance(key, str) or not key or len(key) > MAX_TEXT:
            raise ValueError(f"images: the key {key!r} must be a text of 1 to {MAX_TEXT} letters")
        if isinstance(entry, ImageVersion):
            versions[key] = entry
            continue
        fields = as_fields(entry)
        if not isinstance(fields, Mapping):
            raise ValueError(f"images[{key!r}] must be an image reference or a mapping")
        try:
            version = ImageVersion(**{"title": key, **fields})
        except (ValidationError, TypeError) as error:
            raise ValueError(f"images[{key!r}]: {_first_error(error)}") from None
        if not is_reference(version.image):
            expected = "must name an image, as name:tag or name@sha256:…"
            raise ValueError(f"images[{key!r}]: image: {expected}, got {version.image!r}")
        versions[key] = version
    return versions


def load_catalogue(
    source: str | Path | Mapping[str, Any],
    *,
    add: Mapping[str, Any] | None = None,
    change: Mapping[str, Mapping[str, Any]] | None = None,
    hide: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Load a catalogue for `c.GPUSpawner.images`, with an administrator's changes.

    JupyterHub validates a trait's value only when the first user spawns. An error that this raises
    stops the hub at its start instead.

    Args:
        source: a YAML file or a mapping: version key -> entry.
        add: further versions, shown last. An entry with the key of an existing version replaces
            it. One that is marked `default` becomes the default.
        change: version key -> the fields to change, such as {"image": "name@sha256:…"}.
        hide: keys of versions to leave out.

    Raises:
        ValueError: the file can't be read, a key doesn't exist, or an entry is invalid; the
            message says which.
    """
    name = "the catalogue" if isinstance(source, Mapping) else f"the catalogue {source}"
    try:
        entries = source if isinstance(source, Mapping) else parse_yaml(_text(source))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} can't be read: {error}") from None
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(f"{name} must map each version's key to its entry")
    try:
        catalogue(entries)
        return _apply_changes(
            {key: as_fields(entry) for key, entry in entries.items()}, add, change, hide
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _text(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def _apply_changes(
    entries: dict[str, dict[str, Any]],
    add: Mapping[str, Any] | None,
    change: Mapping[str, Mapping[str, Any]] | None,
    hide: Collection[str],
) -> dict[str, dict[str, Any]]:
    add, change = add or {}, change or {}
    # Iterating over a string would give its letters.
    hidden = [hide] if isinstance(hide, str) else list(hide)
    for key in [*change, *hidden]:
        if key not in entries:
            raise ValueError(f"there is no version {key!r}; there are: {', '.join(entries)}")
    for key, fields in change.items():
        if not isinstance(fields, Mapping):
            raise ValueError(f"change[{key!r}] must be a mapping of the fields to change")
    new = {key: as_fields(entry) for key, entry in add.items()}
    new |= {key: {**entries[key], **fields} for key, fields in change.items()}
    catalogue(new)
    left = {key: entry for key, entry in {**entries, **new}.items() if key not in hidden}
    if not left:
        raise ValueError("no version is left")
    if marked := [key for key in new if {**new, **change}[key].get("default")]:
        for key in left.keys() - marked:
            left[key] = {**left[key], "default": False}
    return left


def as_fields(entry: Any) -> Any:
    """Return an entry as a new mapping of fields; a value that isn't an entry is returned as is."""
    if isinstance(entry, ImageVersion):
        return entry.model_dump()
    return {"image": entry} if isinstance(entry, str) else copy.copy(entry)


def default_key(versions: Mapping[str, ImageVersion], image: str) -> str:
    """Return the key of the version that a choice without an image means.

    That is the entry marked `default`, else the one with the spawner's own `image`, else the first.
    """
    marked = [key for key, version in versions.items() if version.default]
    same = [key for key, version in versions.items() if version.image == image]
    return (marked + same + list(versions))[0]


_EXPECTED = {
    "min_driver": "a driver version, as 525.60.13",
    "toolkit_driver": "a driver version, as 525.60.13",
    "compute_capabilities": 'a list of texts, as ["8.0", "9.0+PTX"]',
}


def _first_error(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    first = error.errors()[0]
    field, *inside = map(str, first["loc"])
    if field in _EXPECTED and first["type"] != "string_type":
        return f"{field}: must be {_EXPECTED[field]}, got {first['input']!r}"
    where = ".".join([field, *inside])
    if first["type"] == "string_type":
        # YAML reads an unquoted 3.10 as the number 3.1.
        return f"{where}: must be text, in quotes, got {first['input']!r}"
    return f"{where}: {first['msg']}"
