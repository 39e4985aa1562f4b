"""The catalogue: which image versions there are, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# More than this is no title but a mistake, and would break the form's layout.
MAX_TEXT = 200

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
        fields = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping):
            raise ValueError(f"images[{key!r}] must be an image reference or a mapping")
        try:
            version = ImageVersion(**{"title": key, **fields})
        except (ValidationError, TypeError) as error:
            raise ValueError(f"images[{key!r}]: {_first_error(error)}") from None
        if not version.image.strip():
            raise ValueError(f"images[{key!r}]: image: must name an image")
        versions[key] = version
    return versions


def load_catalogue(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a catalogue file (YAML) for `c.GPUSpawner.images`.

    Raises:
        ValueError: the file can't be read or an entry is broken; the sentence says which.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the catalogue {path} can't be read: {error}") from None
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"the catalogue {path} must map each version's key to its entry")
    try:
        catalogue(entries)
    except ValueError as error:
        raise ValueError(f"the catalogue {path}: {error}") from None
    return entries


def default_key(versions: Mapping[str, ImageVersion], image: str) -> str:
    """Return the key that an empty choice means.

    The entry marked `default`, else the one whose image is the spawner's own, else the first.
    """
    marked = [key for key, version in versions.items() if version.default]
    same = [key for key, version in versions.items() if version.image == image]
    return (marked + same + list(versions))[0]


def _first_error(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
