"""The languages of the pages: which there are, and which one a reader is given.

The catalogues are gettext's, `locale/*/LC_MESSAGES/gpuspawner.po`; a build compiles each into the
`.mo` file that is read here. Text that isn't ours (an engine's, an administrator's) stays as it is.
"""

from __future__ import annotations

import gettext
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
# Of an Accept-Language header no more is read: browsers send far less.
MAX_HEADER_LENGTH = 1000
MAX_TAGS = 20
_TAG = re.compile(r"\s*([A-Za-z0-9-]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


@dataclass(frozen=True)
class Language:
    """A language, with what a template needs of it.

    Args:
        tag: as HTML's `lang` wants it.
        catalogue: the sentences, by the English ones.
        locale: how it is written, and what Babel knows of its times, numbers and plurals.
    """

    tag: str
    catalogue: gettext.NullTranslations
    locale: Locale = field(default_factory=lambda: Locale("en"))

    def say(self, text: Any) -> Any:
        """Return a sentence in this language; anything else as it is."""
        return text.in_language(self) if isinstance(text, LazyText) else text

    def gettext(self, sentence: str, /, **values: Any) -> Markup:
        """Return a sentence of ours for HTML; values are escaped unless they are Markup."""
        text = self.catalogue.gettext(sentence)
        return Markup(text) % self._said(values)  # noqa: S704  # our own words

    def ngettext(self, one: str, many: str, number: int, /, **values: Any) -> Markup:
        """Return the sentence for a number, which it can name as `%(num)s`."""
        text = self.catalogue.ngettext(one, many, number)
        return Markup(text) % {"num": number, **self._said(values)}  # noqa: S704  # our own words

    def _said(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.say(value) for name, value in values.items()}

    def context(self) -> Mapping[str, Any]:
        """Return what a template is rendered with."""
        return {
            "_": self.gettext,
            "ngettext": self.ngettext,
            "say": self.say,
            "lang": self.tag,
        }


@jinja2.pass_context
def finalize(context: Any, value: Any) -> Any:
    """Say what a template puts out in its reader's language; for `jinja2.Environment`."""
    return context["say"](value) if isinstance(value, LazyText) else value


def _load(tag: str) -> Language:
    """Return a language with its compiled catalogue.

    Raises:
        RuntimeError: it isn't compiled. A hub in English instead would be a surprise.
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
    """Return the templates of a package of ours: what they put out is escaped, and translated."""
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


def languages() -> list[Language]:
    """Return all there are, English first."""
    return [ENGLISH, *TRANSLATED]


def translations(text: str) -> dict[str, str]:
    """Return a sentence in all languages but English, by their tags; {} for what isn't ours."""
    if not isinstance(text, LazyText):
        return {}
    return {language.tag: language.say(text) for language in TRANSLATED}


@lru_cache(maxsize=64)
def language_for(accept_language: str = "") -> Language:
    """Return the language that a browser's Accept-Language header likes best; else English.

    Who reads the traditional characters isn't given the simplified ones, unless their browser asks
    for any Chinese next. (`tornado.locale` can't tell the two apart: it knows languages and
    countries, and no scripts.)
    """
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
    """Return the tags of a header, the best liked first; of two liked as much, the first."""
    entries = accept_language[:MAX_HEADER_LENGTH].split(",")[:MAX_TAGS]
    found = [match for match in map(_TAG.fullmatch, entries) if match]
    weights = [(float(match[2] or 1), match[1]) for match in found]
    weights.sort(key=lambda each: each[0], reverse=True)
    return [tag for weight, tag in weights if weight > 0]


def _written(locale: Locale) -> tuple[str, str | None]:
    """Return a language and its script; where none is named, the one of most who write it."""
    likely = get_global("likely_subtags").get(locale.language)
    return locale.language, locale.script or (parse_locale(likely)[2] if likely else None)
