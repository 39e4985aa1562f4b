"""`make catalogues`: bring the translations up to date with the sentences in the code, and compile.

New sentences have no translation until somebody writes it; a test names the missing ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

from hatch_build import CATALOGUES, compile_catalogues

from .console import ROOT

PACKAGE = ROOT / "gpuspawner"
METHODS = [("**.py", "python"), ("**/templates/**.html", "jinja2")]
OPTIONS = {"**/templates/**.html": {"trimmed": "true", "silent": "false"}}
KEYWORDS = {"lazy_gettext": None, "lazy_ngettext": (1, 2), "N_": None, "_": None, "gettext": None}
KEYWORDS |= {"ngettext": (1, 2)}
# Lines longer than the file's others are harder to read than broken ones.
WIDTH = 100


@dataclass(frozen=True)
class Sentence:
    """A sentence in the code; `many` is its plural form, "" if it has none."""

    one: str
    many: str
    where: str


def sentences() -> list[Sentence]:
    """Return the sentences in the code and the templates, each once."""
    found: dict[tuple[str, str], Sentence] = {}
    for one, many, where in _extracted():
        found.setdefault((one, many), Sentence(one, many, where))
    return sorted(found.values(), key=lambda each: (each.where, each.one))


def _extracted() -> Iterator[tuple[str, str, str]]:
    extracted = extract_from_dir(str(PACKAGE), METHODS, OPTIONS, KEYWORDS)
    for name, _line, text, _comments, _context in extracted:
        one, many = text if isinstance(text, tuple) else (text, "")
        yield one, many, name


def read(path: Path) -> Catalog:
    """Return the catalogue in a file."""
    with path.open("rb") as file:
        return read_po(file, abort_invalid=True)


def renew(path: Path) -> Catalog:
    """Write and return a catalogue with exactly the sentences that the code has now."""
    old = read(path)
    new = Catalog(old.locale)
    for sentence in sentences():
        key = (sentence.one, sentence.many) if sentence.many else sentence.one
        known = old.get(sentence.one)
        kept = known if known and known.id == key else None
        new.add(
            key,
            kept.string if kept else None,
            locations=[(sentence.where, 0)],
            flags={"fuzzy"} & kept.flags if kept else (),
        )
    # Its header is the translators'; Babel's own would differ at every run.
    header, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    body = io.BytesIO()
    write_po(body, new, WIDTH, omit_header=True)
    path.write_text(f"{header}\n\n{body.getvalue().decode().strip()}\n", encoding="utf-8")
    return new


def main() -> int:
    """Renew and compile all catalogues; return the exit status."""
    for path in sorted(ROOT.glob(CATALOGUES)):
        found = renew(path)
        left = len(missing(found))
        print(f"{path.relative_to(ROOT)}: {len(found)} sentences, {left} to translate")
    compile_catalogues(ROOT)
    return 0


def missing(catalogue: Catalog) -> list[str]:
    """Return the sentences whose translation is missing or marked as fuzzy."""
    return [
        message.id if isinstance(message.id, str) else message.id[0]
        for message in catalogue
        if message.id and (message.fuzzy or not _is_translated(message))
    ]


def _is_translated(message: Message) -> bool:
    strings = [message.string] if isinstance(message.string, str) else message.string or [""]
    return all(strings)


if __name__ == "__main__":
    raise SystemExit(main())
