"""A step of every build, of a wheel or an install in place: gettext's catalogues are compiled."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CATALOGUES = "gpuspawner/i18n/locale/*/LC_MESSAGES/*.po"


def compile_catalogues(root: Path) -> None:
    """Write the `.mo` file of every catalogue beside it.

    Args:
        root: the folder that `gpuspawner/` is in.

    Raises:
        babel.messages.pofile.PoFileError: a catalogue isn't in gettext's form.
    """
    for source in root.glob(CATALOGUES):
        with source.open("rb") as file:
            catalogue = read_po(file, abort_invalid=True)
        # Babel's would be now, and no two builds alike.
        catalogue.creation_date = datetime.fromtimestamp(0, timezone.utc)
        # Whole at once: a hub that runs from this checkout may be started meanwhile.
        written = source.with_suffix(".mo.new")
        with written.open("wb") as file:
            write_mo(file, catalogue)
        written.replace(source.with_suffix(".mo"))


class CatalogueBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # of a builder's settings
    """What hatchling runs before it collects the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the catalogues; `version` is "standard" or "editable"."""
        compile_catalogues(Path(self.root))
