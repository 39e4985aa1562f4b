"""`make catalogues`: bring the translations up to date with the sentences in the code.

What is new comes without a translation, for a person to write; a test says which are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polib
from babel.messages.extract import extract_from_dir

PACKAGE = Path(__file__).parent.parent / "gpuspawner"
METHODS = [("**.py", "python"), ("**/templates/**.html", "jinja2")]
OPTIONS = {"**/templates/**.html": {"trimmed": "true", "silent": "false"}}
KEYWORDS = {"lazy_gettext": None, "lazy_ngettext": (1, 2), "N_": None, "_": None, "gettext": None}
KEYWORDS |= {"ngettext": (1, 2)}
# Lines longer than the file's others are harder to read than broken ones.
WIDTH = 100


@dataclass(frozen=True)
class Message:
    """A sentence in the code; `many` is "" where it is the same for every number."""

    one: str
    many: str
    where: str


def messages() -> list[Message]:
    """Return every sentence in the code, each once."""
    found: dict[tuple[str, str], Message] = {}
    for one, many, where in _extracted():
        found.setdefault((one, many), Message(one, many, where))
    return sorted(found.values(), key=lambda each: (each.where, each.one))


def _extracted() -> Iterator[tuple[str, str, str]]:
    extracted = extract_from_dir(str(PACKAGE), METHODS, OPTIONS, KEYWORDS)
    for name, _line, text, _comments, _context in extracted:
        one, many = text if isinstance(text, tuple) else (text, "")
        yield one, many, name


def renew(path: Path) -> polib.POFile:
    """Add what a catalogue hasn't, and take out what the code hasn't any more."""
    found = polib.pofile(str(path), wrapwidth=WIDTH, encoding="utf-8")
    known = {(entry.msgid, entry.msgid_plural): entry for entry in found}
    entries = []
    for message in messages():
        entry = known.get((message.one, message.many)) or polib.POEntry(
            msgid=message.one,
            msgid_plural=message.many,
            msgstr_plural={0: ""} if message.many else {},
        )
        entry.occurrences = [(message.where, "")]
        entries.append(entry)
    found[:] = entries
    return found


def main() -> int:
    """Write them anew."""
    for path in sorted(PACKAGE.glob("i18n/locale/*/LC_MESSAGES/*.po")):
        found = renew(path)
        found.save(str(path))
        missing = len([entry for entry in found if not entry.translated()])
        print(f"{path.relative_to(PACKAGE.parent)}: {len(found)} sentences, {missing} to translate")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
