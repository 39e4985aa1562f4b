"""The catalogue: which image versions there are, and what is known of each."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# More than this is no title but a mistake, and would break the form's layout.
MAX_TEXT = 200

# As the engine reads it: [domain/]name[:tag][@digest], or an image's own id.
# ref: https://pkg.go.dev/github.com/distribution/reference
_DIGEST = r"(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})"
_PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
_DOMAIN = r"([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?/"
_REFERENCE = re.compile(
    rf"({_DOMAIN})?{_PART}(/{_PART})*(:[\w][\w.-]{{0,127}})?(@{_DIGEST})?|{_DIGEST}", re.ASCII
)

# What isn't a version would be no limit at all.
Driver = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)*)?$")]
# "8.0" for sm_80; "9.0+PTX" where newer GPUs can compile it as well.
Capability = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+(\+PTX)?$")]


class ImageVersion(BaseModel):
    """One catalogue entry. Of an image that was only named, nothing but `image` is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=MAX_TEXT)

    image: str
    title: str = ""
    description: str = ""
    framework: str = ""
    cuda: str = ""
    cudnn: str = ""
    nccl: str = ""
    python: str = ""
    # Below it CUDA doesn't start at all.
    min_driver: Driver = ""
    # The one that the CUDA release came with.
    toolkit_driver: Driver = ""
    # What the framework was built for; empty: not known, and nothing is ruled out.
    compute_capabilities: tuple[Capability, ...] = ()
    size: str = ""
    # Why not to begin anything new with it; empty: no reason.
    deprecated: str = ""
    default: bool = False

    def facts(self) -> str:
        """Return what is known of the version as one line: "PyTorch 2.7.0 · CUDA 12.6 · …"."""
        known = [
            self.framework,
            f"CUDA {self.cuda}" if self.cuda else "",
            f"Python {self.python}" if self.python else "",
            self.size,
        ]
        return " · ".join(filter(None, known))


def catalogue(entries: Mapping[str, Any]) -> dict[str, ImageVersion]:
    """Check a catalogue as an administrator wrote it: key -> image reference, or key -> mapping.

    Raises:
        ValueError: an entry is broken; the sentence names its key and field.
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
        if not _REFERENCE.fullmatch(version.image):
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
    """Return a catalogue for `c.GPUSpawner.images`, with an administrator's changes.

    JupyterHub looks at a trait's value when the first user comes, too late for a mistake in it.
    What this raises stops a hub at its start.

    Args:
        source: a file (YAML) or a mapping: each version's key -> its entry.
        add: further versions, shown last. One whose key is in the file takes that one's place. One
            that is marked `default` is the default instead of the file's.
        change: key -> the fields to change, such as {"image": "name@sha256:…"}.
        hide: keys of versions to leave out.

    Raises:
        ValueError: the file can't be read, there is no such key, or an entry is broken; the
            sentence says which.
    """
    name = "the catalogue" if isinstance(source, Mapping) else f"the catalogue {source}"
    try:
        entries = source if isinstance(source, Mapping) else yaml.safe_load(_text(source))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    # A text would be taken for its letters.
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
    """Return an entry as a mapping of its own; what is no entry stays what it is."""
    if isinstance(entry, ImageVersion):
        return entry.model_dump()
    return {"image": entry} if isinstance(entry, str) else copy.copy(entry)


def default_key(versions: Mapping[str, ImageVersion], image: str) -> str:
    """Return the key that an empty choice means.

    The entry marked `default`, else the one whose image is the spawner's own, else the first.
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
        # YAML makes a number of what isn't quoted, and 3.10 would become 3.1.
        return f"{where}: must be text, in quotes, got {first['input']!r}"
    return f"{where}: {first['msg']}"
