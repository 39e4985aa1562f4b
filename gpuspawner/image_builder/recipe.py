"""The inputs of an image version's build: its files, their fingerprint and the build context."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images.catalogue import ImageVersion, catalogue, load_catalogue

# The version that every other one contains: its lock makes the layer they share.
COMMON = "minimal"

# What every version is built from, and what one version adds.
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
        BuildingError: neither is there.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "image", package / "image"):
        if (folder / "Dockerfile").is_file():
            return folder
    raise BuildingError("the image folder with the Dockerfile isn't there; use a git checkout")


@dataclass(frozen=True)
class Recipe:
    """One version of the catalogue and the folder that it is built from."""

    key: str
    version: ImageVersion
    folder: Path

    @property
    def relative_folder(self) -> str:
        """The version's own files, below the folder: a version's, or an addition's to one."""
        return _relative_folder(self.folder, self.key)

    @property
    def lock(self) -> Path:
        """The pinned Python packages."""
        return self.folder / self.relative_folder / "requirements.lock"

    @property
    def addition(self) -> str:
        """The key where it only adds something to another version, whose layers it has; or ""."""
        return self.key if self.relative_folder.startswith("additions/") else ""

    @property
    def base_version(self) -> str:
        """The version that an addition adds something to; else the key itself.

        That is the one whose requirements its own begin with, so one place says so.

        Raises:
            BuildingError: an addition doesn't say it.
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
        """The versions whose packages it has, at the same versions; the common one first."""
        return [key for key in dict.fromkeys((COMMON, self.base_version)) if key != self.key]

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files that decide what the image is: name in the parcel, path; in order."""
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
        """Return a hash of everything that is pinned: the same inputs make the same image.

        Which of the two equal base images was at hand, pulled or made here, makes no difference.
        """
        digest = hashlib.sha256(f"{self.key}\0".encode())
        for name, path in self.files():
            content = path.read_bytes()
            mode = path.stat().st_mode & 0o111
            digest.update(f"{name}\0{bool(mode)}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def build_context(self, network: Mapping[str, bytes]) -> bytes:
        """Return the build context, a gzipped tar.

        Args:
            network: files for the folder `network/`, from `network_files`.
        """
        buffer = io.BytesIO()
        # GNU format: BuildKit in 20.10 takes a tar that begins with a PAX header for a Dockerfile.
        with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as parcel:
            contents = [(name, path.read_bytes(), path) for name, path in self.files()]
            for name, content, path in contents:
                executable = path.stat().st_mode & 0o100
                _add(parcel, name, content, 0o755 if executable else 0o644)
            _add(parcel, "network/README", b"see image/network/README.md", 0o644)
            # Steps mount the folder, which most versions have nothing in.
            _add(parcel, "additions/README", b"see image/README.md", 0o644)
            for name, content in network.items():
                _add(parcel, f"network/{name}", content, 0o644)
        return buffer.getvalue()


def _relative_folder(folder: Path, key: str) -> str:
    kind = "additions" if (folder / "additions" / key).is_dir() else "versions"
    return f"{kind}/{key}"


def _is_input(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


def _add(parcel: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    # Time and owner stay zero, so that the engine's cache sees only contents.
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
    """Return what the build needs to know of this machine's network: CA bundle and package index.

    A machine whose CAs are the distribution's hands over none. One with own CAs, because a proxy
    inspects TLS, has a variable that says so or files in /usr/local/share/ca-certificates.

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
