"""The language of a page: the one place that knows which there are.

The catalogues are `locale/*/LC_MESSAGES/gpuspawner.po`, in gettext's form, and read as they are.
What isn't ours to say (an engine's words, an administrator's) comes as it is.
"""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polib
from jinja2 import pass_context
from markupsafe import Markup

from .lazy_text import Sentence

FOLDER = Path(__file__).parent / "locale"


@dataclass(frozen=True)
class Language:
    """A language, with what a template needs of it.

    Args:
        tag: as HTML's `lang` wants it.
        catalogue: the sentences, by the English ones.
    """

    tag: str
    catalogue: gettext.NullTranslations

    def say(self, text: Any) -> Any:
        """Return a sentence in this language; anything else as it is."""
        return text.said(self.catalogue) if isinstance(text, Sentence) else text

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


@pass_context
def finalize(context: Any, value: Any) -> Any:
    """Say what a template puts out in its reader's language; for `jinja2.Environment`."""
    return context["say"](value) if isinstance(value, Sentence) else value


ENGLISH = Language("en", gettext.NullTranslations())


# Tag -> folder of its catalogue.
CATALOGUES = {"zh-CN": "zh_CN"}
# What browsers ask for, in small letters and with more after it. Who reads the traditional
# characters isn't given the simplified ones, unless their browser asks for any Chinese next.
_ASKED = {
    "en": "en",
    "zh": "zh-CN",
    "zh-cn": "zh-CN",
    "zh-sg": "zh-CN",
    "zh-my": "zh-CN",
    "zh-hans": "zh-CN",
}


def languages() -> list[Language]:
    """Return all there are, English first."""
    return [ENGLISH, *map(_read, CATALOGUES)]


@cache
def _read(tag: str) -> Language:
    path = FOLDER / CATALOGUES[tag] / "LC_MESSAGES" / "gpuspawner.po"
    found = polib.pofile(str(path), encoding="utf-8")
    return Language(tag, gettext.GNUTranslations(io.BytesIO(found.to_binary())))


def translations(text: str) -> dict[str, str]:
    """Return a sentence in all languages but English, by their tags; {} for what isn't ours."""
    if not isinstance(text, Sentence):
        return {}
    return {tag: _read(tag).say(text) for tag in CATALOGUES}


def language_for(accept_language: str = "") -> Language:
    """Return the language that a browser's Accept-Language header likes best; else English."""
    wanted = []
    for entry in accept_language[:1000].split(","):
        tag, _, parameter = entry.strip().lower().partition(";")
        weight = re.fullmatch(r"\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*", parameter or "q=1")
        tag = _known(tag.strip())
        if tag and weight and float(weight.group(1)) > 0:
            wanted.append((float(weight.group(1)), tag))
    # Of two that are liked as much, the first.
    best = max(wanted, key=lambda each: each[0])[1] if wanted else ENGLISH.tag
    return _read(best) if best in CATALOGUES else ENGLISH


def _known(tag: str) -> str:
    """Return our tag for one that was asked for: "en" for "en-gb"; "" where there is none."""
    for asked, ours in _ASKED.items():
        # "zh-tw" isn't "zh".
        if tag == asked or (asked != "zh" and tag.startswith(f"{asked}-")):
            return ours
    return ""
