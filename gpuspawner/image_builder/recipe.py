"""The inputs of an image version's build: its files, their fingerprint and the build context."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images.catalogue import ImageVersion, catalogue, load_catalogue

# The version that all others contain: its lock makes their common layer.
COMMON = "minimal"

# The files of every version, and those of a single version.
COMMON_FILES = ("Dockerfile", "apt.txt", "installer.lock", "steps", "checks", "rootfs")
VERSION_FILES = ("requirements.lock", "apt.txt")

SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")
OWN_CAS = Path("/usr/local/share/ca-certificates")
CA_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")


class BuildingError(Exception):
    """An image can't be built or checked. `str()` is a sentence for administrators."""


def image_folder() -> Path:
    """Return the folder with the Dockerfile: the checkout's, else the installed package's.

    Raises:
        BuildingError: neither exists.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "image", package / "image"):
        if (folder / "Dockerfile").is_file():
            return folder
    raise BuildingError("the image folder with the Dockerfile isn't there; use a git checkout")


@dataclass(frozen=True)
class Recipe:
    """An image version of the catalogue, and the folder that it is built from."""

    key: str
    version: ImageVersion
    folder: Path

    @property
    def relative_folder(self) -> str:
        """The folder of the version's own files, relative to `folder`."""
        return _relative_folder(self.folder, self.key)

    @property
    def lock(self) -> Path:
        """The file with the pinned Python packages."""
        return self.folder / self.relative_folder / "requirements.lock"

    @property
    def addition(self) -> str:
        """The key if it only adds something to another version, whose layers it shares; else ""."""
        return self.key if self.relative_folder.startswith("additions/") else ""

    @property
    def base_version(self) -> str:
        """The key of the version that an addition is based on; else its own key.

        An addition's requirements begin with a reference to those of that version.

        Raises:
            BuildingError: an addition's requirements have no such reference.
        """
        if not self.addition:
            return self.key
        wanted = (self.folder / self.relative_folder / "requirements.in").read_text()
        found = re.search(r"^-r \.\./\.\./versions/([^/\s]+)/", wanted, re.MULTILINE)
        if found is None:
            raise BuildingError(
                f"{self.relative_folder}/requirements.in must begin with a version's: -r …"
            )
        return found[1]

    @property
    def parent_versions(self) -> list[str]:
        """The keys of the versions whose packages it shares, the common one first."""
        return [key for key in dict.fromkeys((COMMON, self.base_version)) if key != self.key]

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield (name in the build context, path) of the files that decide what the image is."""
        names = [*COMMON_FILES]
        for inside in sorted(
            {
                self.relative_folder,
                *(_relative_folder(self.folder, key) for key in self.parent_versions),
            }
        ):
            names += [f"{inside}/{name}" for name in VERSION_FILES]
        for name in names:
            path = self.folder / name
            if path.is_dir():
                inside_it = sorted(child for child in path.rglob("*") if _is_input(child))
                yield from (
                    (child.relative_to(self.folder).as_posix(), child) for child in inside_it
                )
            elif path.is_file():
                yield name, path

    def fingerprint(self) -> str:
        """Return a hash of all pinned inputs: equal inputs make equal images.

        It doesn't depend on whether the base image was pulled or built here.
        """
        return fingerprint_of(self.key, self.files())

    def build_context(self, network: Mapping[str, bytes]) -> bytes:
        """Return the build context, a gzipped tar.

        Args:
            network: files for the folder `network/`, from `network_files`.
        """
        more = {
            "network/README": b"see image/network/README.md",
            # Steps mount the folder, which most versions have nothing in.
            "additions/README": b"see image/README.md",
            **{f"network/{name}": content for name, content in network.items()},
        }
        return packed(self.files(), more)


def _relative_folder(folder: Path, key: str) -> str:
    kind = "additions" if (folder / "additions" / key).is_dir() else "versions"
    return f"{kind}/{key}"


def _is_input(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


def fingerprint_of(name: str, files: Iterable[tuple[str, Path]]) -> str:
    """Return a hash of a build's inputs: (name in the build context, path) of each file."""
    digest = hashlib.sha256(f"{name}\0".encode())
    for inside, path in files:
        content = path.read_bytes()
        mode = path.stat().st_mode & 0o111
        digest.update(f"{inside}\0{bool(mode)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def packed(files: Iterable[tuple[str, Path]], more: Mapping[str, bytes]) -> bytes:
    """Return a build context, a gzipped tar.

    Args:
        files: (name in the build context, path) of each file.
        more: further files: name -> content.
    """
    buffer = io.BytesIO()
    # GNU format: BuildKit of Docker 20.10 takes an archive with a PAX header for a Dockerfile.
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as parcel:
        for name, content, path in [(name, path.read_bytes(), path) for name, path in files]:
            _add(parcel, name, content, 0o755 if path.stat().st_mode & 0o100 else 0o644)
        for name, content in more.items():
            _add(parcel, name, content, 0o644)
    return buffer.getvalue()


def _add(parcel: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    # Time and owner stay zero, so that the engine's cache depends on contents only.
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    parcel.addfile(entry, io.BytesIO(content))


def recipes(folder: Path | None = None) -> dict[str, Recipe]:
    """Read the catalogue beside the Dockerfile.

    Raises:
        BuildingError: it is missing or broken.
    """
    folder = folder or image_folder()
    try:
        versions = catalogue(load_catalogue(folder / "catalogue.yaml"))
    except ValueError as error:
        raise BuildingError(str(error)) from None
    return {key: Recipe(key, version, folder) for key, version in versions.items()}


def recipe(key: str, folder: Path | None = None) -> Recipe:
    """Return one version's recipe.

    Raises:
        BuildingError: the catalogue has no such key, or the version no lock.
    """
    known = recipes(folder)
    if key not in known:
        raise BuildingError(f"there is no image version {key!r}; there are: {', '.join(known)}")
    if not known[key].lock.is_file():
        raise BuildingError(f"{key} has no lock yet: run `gpuspawner image lock {key}`")
    return known[key]


def network_files(environment: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """Return the files with this machine's network settings for a build: name -> content.

    They are the configured package index, and the CA bundle if the machine has CAs of its own, as
    behind a proxy that inspects TLS: a variable names it, or /usr/local/share/ca-certificates has
    files.

    Raises:
        BuildingError: a variable names a CA bundle that can't be read.
    """
    files = {}
    named = [name for name in CA_VARIABLES if environment.get(name)]
    if named:
        try:
            files["ca.pem"] = Path(environment[named[0]]).read_bytes()
        except OSError as error:
            raise BuildingError(
                f"{named[0]} names a CA bundle that can't be read: {error}"
            ) from None
    elif SYSTEM_CA.is_file() and OWN_CAS.is_dir() and any(OWN_CAS.rglob("*.crt")):
        files["ca.pem"] = SYSTEM_CA.read_bytes()
    index = next((environment[name] for name in INDEX_VARIABLES if environment.get(name)), None)
    if index:
        files["index-url"] = index.encode()
    return files


def proxy_arguments(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return this machine's proxies as build arguments.

    These are predefined: no Dockerfile declares them, no image or history keeps them.
    ref: https://docs.docker.com/reference/dockerfile/#predefined-args
    """
    names = [name for lower in PROXY_VARIABLES for name in (lower, lower.upper())]
    return {name: environment[name] for name in names if environment.get(name)}
