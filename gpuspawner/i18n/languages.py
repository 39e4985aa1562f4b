"""The languages of the pages, and the choice of one by a browser's Accept-Language.

The gettext catalogues are `locale/*/LC_MESSAGES/gpuspawner.po`; a build compiles them to the `.mo`
files that are read here. Text of the engine or an administrator isn't translated.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from babel import Locale, UnknownLocaleError
from babel.core import get_global, parse_locale
from markupsafe import Markup

from .lazy_text import LazyText

DOMAIN = "gpuspawner"
FOLDER = Path(__file__).parent / "locale"
# How much of an Accept-Language header is parsed; browsers send far less.
MAX_HEADER_LENGTH = 1000
MAX_TAGS = 20
_TAG = re.compile(r"\s*([A-Za-z0-9-]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


@dataclass(frozen=True)
class Language:
    """A reader's language, with its catalogue and locale, and what the reader may know.

    Args:
        tag: the language tag, as in HTML's `lang`.
        catalogue: the translations of English sentences.
        locale: Babel's locale, for times, durations and plurals.
        names_machines: whether the reader may know the machines' names; `naming` sets it.
    """

    tag: str
    catalogue: gettext.NullTranslations
    locale: Locale = field(default_factory=lambda: Locale("en"))
    names_machines: bool = False

    def naming(self, names_machines: bool) -> Language:
        """Return the language for a reader who may, or may not, know the machines' names."""
        if names_machines == self.names_machines:
            return self
        return replace(self, names_machines=names_machines)

    def say(self, text: Any) -> Any:
        """Translate lazy text to this language; return anything else as it is."""
        return text.in_language(self) if isinstance(text, LazyText) else text

    def gettext(self, sentence: str, /, **values: Any) -> Markup:
        """Translate a sentence for HTML; values are escaped unless they are Markup."""
        text = self.catalogue.gettext(sentence)
        return Markup(text) % self._said(values)  # noqa: S704  # our own words

    def ngettext(self, one: str, many: str, number: int, /, **values: Any) -> Markup:
        """Translate a sentence with a number, `%(num)s`, for HTML."""
        text = self.catalogue.ngettext(one, many, number)
        return Markup(text) % {"num": number, **self._said(values)}  # noqa: S704  # our own words

    def _said(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.say(value) for name, value in values.items()}

    def context(self) -> Mapping[str, Any]:
        """Return the variables and functions for a template."""
        return {
            "_": self.gettext,
            "ngettext": self.ngettext,
            "say": self.say,
            "lang": self.tag,
        }


@jinja2.pass_context
def finalize(context: Any, value: Any) -> Any:
    """Translate lazy text that a template outputs; for `jinja2.Environment`."""
    return context["say"](value) if isinstance(value, LazyText) else value


def _load(tag: str) -> Language:
    """Load a language with its compiled catalogue.

    Raises:
        RuntimeError: the catalogue isn't compiled. English instead would be a surprise.
    """
    name = tag.replace("-", "_")
    try:
        catalogue = gettext.translation(DOMAIN, FOLDER, languages=[name])
    except FileNotFoundError:
        raise RuntimeError(
            f"{FOLDER / name / 'LC_MESSAGES' / DOMAIN}.mo is missing: in a checkout, "
            "`make catalogues` compiles it; elsewhere, install gpuspawner again"
        ) from None
    return Language(tag, catalogue, Locale.parse(tag, sep="-"))


def templates_of(package: str) -> jinja2.Environment:
    """Return the template environment of a package, which escapes and translates its output."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
    )


ENGLISH = Language("en", gettext.NullTranslations())
TRANSLATED = (_load("zh-CN"),)
# Of the hub's log, which administrators read.
LOG = ENGLISH.naming(True)


def languages() -> list[Language]:
    """Return all languages, English first."""
    return [ENGLISH, *TRANSLATED]


def translations(text: str, names_machines: bool = False) -> dict[str, str]:
    """Return language tag -> translation of lazy text, without English; {} for other text.

    Args:
        text: the text.
        names_machines: whether all who read it may know the machines' names.
    """
    if not isinstance(text, LazyText):
        return {}
    return {each.tag: each.naming(names_machines).say(text) for each in TRANSLATED}


def language_for(accept_language: str = "") -> Language:
    """Return the best language for a browser's Accept-Language header; English if none matches.

    Traditional Chinese doesn't match simplified Chinese unless the header also accepts any Chinese.
    (`tornado.locale` can't tell them apart: it knows languages and countries, but no scripts.)
    """
    return _best_match(accept_language[:MAX_HEADER_LENGTH])


@lru_cache(maxsize=64)
def _best_match(accept_language: str) -> Language:
    for tag in _by_weight(accept_language):
        try:
            wanted = _written(Locale.parse(tag, sep="-"))
        except (ValueError, UnknownLocaleError):
            continue
        for language in languages():
            if _written(language.locale) == wanted:
                return language
    return ENGLISH


def _by_weight(accept_language: str) -> list[str]:
    """Return the tags of a header by weight, highest first; equal ones in their order."""
    entries = accept_language.split(",")[:MAX_TAGS]
    found = [match for match in map(_TAG.fullmatch, entries) if match]
    weights = [(float(match[2] or 1), match[1]) for match in found]
    weights.sort(key=lambda each: each[0], reverse=True)
    return [tag for weight, tag in weights if weight > 0]


def _written(locale: Locale) -> tuple[str, str | None]:
    """Return a locale's language and script, the language's usual one if it names none."""
    likely = get_global("likely_subtags").get(locale.language)
    return locale.language, locale.script or (parse_locale(likely)[2] if likely else None)
