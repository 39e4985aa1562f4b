"""The bill of materials: which packages, at which versions, are in a built image.

Its format is CycloneDX, which vulnerability scanners read. It has no time and nothing of the
machine, so equal images have equal files.

ref: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .checks import normalized_name
from .recipe import Recipe

FILE = "sbom.cdx.json"


def bill(description: Mapping[str, Any], recipe: Recipe) -> str:
    """Return the bill of materials of an image, as JSON text.

    Args:
        description: the result of `checks.contents`.
        recipe: the image version's inputs.
    """
    name, _, tag = recipe.version.image.partition(":")
    image = {"type": "container", "name": name, "version": tag, "bom-ref": recipe.version.image}
    system = description["system"]
    components = [
        _component("deb", package, version, _deb(system, package, version, architecture))
        for package, version, architecture in system["packages"]
    ]
    licenses = description["licenses"]
    components += [
        _component("pypi", package, version, _pypi(package, version), licenses.get(package, ""))
        for package, version in description["packages"].items()
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": sorted(components, key=lambda each: str(each["purl"])),
    }
    return json.dumps(document, indent=1) + "\n"


def _component(
    kind: str, name: str, version: str, purl: str, license_: str = ""
) -> dict[str, object]:
    named = {"licenses": [{"expression": license_}]} if license_ else {}
    name = normalized_name(name) if kind == "pypi" else name
    head = {"type": "library", "bom-ref": purl, "name": name, "version": version}
    return {**head, **named, "purl": purl}


# ref: https://github.com/package-url/purl-spec
def _deb(system: Mapping[str, Any], name: str, version: str, architecture: str) -> str:
    distribution = quote(f"{system['id']}-{system['version']}".rstrip("-"))
    where = f"arch={architecture}&distro={distribution}"
    return f"pkg:deb/{system['id']}/{quote(name)}@{quote(version, safe=':')}?{where}"


def _pypi(name: str, version: str) -> str:
    return f"pkg:pypi/{normalized_name(name)}@{quote(version)}"
