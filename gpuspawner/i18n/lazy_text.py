"""Sentences that know how they are made, so that a page can say them in its reader's language.

A `Sentence` is a `str`, in English: logs, exceptions and JSON have it as it is, and what is made of
it by any means but those below is English text and no more. `i18n` says it in another language.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping, Sequence
from typing import Any


class Sentence(str):
    """A sentence, or a part of one, with the numbers and names in it.

    Args:
        one: in English, with `%(name)s` for each value: what the catalogues know it by.
        values: text, numbers, and sentences.
        many: the same for any number but 1.
        number: how many; `%(num)s` in the text.
    """

    __slots__ = ("many", "number", "one", "values")

    one: str
    many: str
    number: int
    values: Mapping[str, Any]

    def __new__(
        cls, one: str, values: Mapping[str, Any], many: str = "", number: int = 1
    ) -> Sentence:
        """Make it."""
        known = {**values, "num": number} if many else dict(values)
        self = super().__new__(cls, (many if many and number != 1 else one) % known)
        self.one, self.many, self.number, self.values = one, many, number, known
        return self

    def __str__(self) -> str:
        """Return it as it is: `str()` of an exception is then what it was made of."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as what it was made of."""
        return Sentence, (self.one, self.values, self.many, self.number)

    def said(self, catalogue: gettext.NullTranslations) -> str:
        """Return it in the language of a catalogue; in English where that can't say it."""
        pattern = (
            catalogue.ngettext(self.one, self.many, self.number)
            if self.many
            else catalogue.gettext(self.one)
        )
        try:
            return pattern % {
                name: value.said(catalogue) if isinstance(value, Sentence) else value
                for name, value in self.values.items()
            }
        except (KeyError, TypeError, ValueError):  # a catalogue that names other values
            return str.__str__(self)


def lazy_gettext(sentence: str, /, **values: Any) -> Sentence:
    """Return a sentence that is translated where it is shown."""
    return Sentence(sentence, values)


def lazy_ngettext(one: str, many: str, number: int, /, **values: Any) -> Sentence:
    """Return the sentence for a number, which it can name as `%(num)s`."""
    return Sentence(one, values, many, number)


def N_(sentence: str) -> str:
    """Return a sentence for `lazy_gettext` whose values come later; catalogues have it too."""
    return sentence


def together(*parts: str) -> str:
    """Return sentences one after the other; empty ones are left out."""
    first, *others = [part for part in parts if part] or [""]
    for other in others:
        # Not every language has a space there.
        first = lazy_gettext("%(first)s %(second)s", first=first, second=other)
    return first


def listed(parts: Sequence[str], last: str = "") -> str:
    """Return a list in words: "a, b, c", or with `last` between the last two."""
    if not parts:
        return ""
    first, *others = parts
    for number, other in enumerate(others, 1):
        if last == "and" and number == len(others):
            first = lazy_gettext("%(first)s and %(second)s", first=first, second=other)
        elif last == "or" and number == len(others):
            first = lazy_gettext("%(first)s or %(second)s", first=first, second=other)
        else:
            first = lazy_gettext("%(first)s, %(second)s", first=first, second=other)
    return first


def kept(text: str) -> Any:
    """Return a sentence as a value for JSON, for `restored`; other text as it is."""
    if not isinstance(text, Sentence):
        return text
    values = {name: kept(value) for name, value in text.values.items() if name != "num"}
    return {"one": text.one, "many": text.many, "number": text.number, "values": values}


def restored(value: Any) -> Any:
    """Return what `kept` was given. Anything else it may find is text, or nothing."""
    if not isinstance(value, Mapping):
        return value
    try:
        values = {name: restored(each) for name, each in value["values"].items()}
        return Sentence(value["one"], values, value["many"], value["number"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""
