"""Text that knows how it is made, so that a page can show it in its reader's language.

A `LazyText` is a `str`, in English: logs, exceptions and JSON have it as it is, and what is made of
it by any means but those below is English text and no more. (Babel's `LazyProxy` and speaklater's
lazy strings are no `str`, and forget their values when they are pickled or put into JSON.)
"""

from __future__ import annotations

import gettext
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Translator(Protocol):
    """What text is shown by: `languages.Language`."""

    @property
    def catalogue(self) -> gettext.NullTranslations:
        """The sentences, by the English ones."""

    @property
    def locale(self) -> Any:
        """A `babel.Locale`."""


class LazyText(str, ABC):
    """Text that is made anew for each reader."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return it as it is: `str()` of an exception is then what it was made of."""
        return self

    @abstractmethod
    def in_language(self, language: Translator) -> str:
        """Return it in a language."""

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """Return it as a value for JSON, for `restored`."""


class Sentence(LazyText):
    """A sentence, or a part of one, with the numbers and names in it.

    Args:
        one: in English, with `%(name)s` for each value: what the catalogues know it by.
        values: text, numbers, and lazy text.
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as what it was made of."""
        return Sentence, (self.one, self.values, self.many, self.number)

    def in_language(self, language: Translator) -> str:
        """Return it in a language; in English where its catalogue can't say it."""
        catalogue = language.catalogue
        pattern = (
            catalogue.ngettext(self.one, self.many, self.number)
            if self.many
            else catalogue.gettext(self.one)
        )
        try:
            return pattern % {
                name: value.in_language(language) if isinstance(value, LazyText) else value
                for name, value in self.values.items()
            }
        except (KeyError, TypeError, ValueError):  # a catalogue that names other values
            return str.__str__(self)

    def kept(self) -> dict[str, Any]:
        """Return it as a value for JSON, its values too."""
        values = {name: kept(value) for name, value in self.values.items() if name != "num"}
        return {"one": self.one, "many": self.many, "number": self.number, "values": values}


# How numbers are written: name -> what makes text of a number and of a `babel.Locale` or its name.
FORMATS: dict[str, Callable[[float, Any], str]] = {}


class Quantity(LazyText):
    """A number as people write it: a time, a duration.

    Args:
        form: one of `FORMATS`.
        number: what is written.
    """

    __slots__ = ("form", "number")

    form: str
    number: float

    def __new__(cls, form: str, number: float) -> Quantity:
        """Make it."""
        self = super().__new__(cls, FORMATS[form](number, "en"))
        self.form, self.number = form, number
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as what it was made of."""
        return Quantity, (self.form, self.number)

    def in_language(self, language: Translator) -> str:
        """Return it as a language writes it."""
        return FORMATS[self.form](self.number, language.locale)

    def kept(self) -> dict[str, Any]:
        """Return it as a value for JSON."""
        return {"form": self.form, "number": self.number}


def lazy_gettext(sentence: str, /, **values: Any) -> Sentence:
    """Return a sentence that is translated where it is shown."""
    return Sentence(sentence, values)


def lazy_ngettext(one: str, many: str, number: int, /, **values: Any) -> Sentence:
    """Return the sentence for a number, which it can name as `%(num)s`."""
    return Sentence(one, values, many, number)


def N_(sentence: str) -> str:
    """Return a text for `lazy_gettext` whose values aren't known yet; the catalogues have it."""
    return sentence


def join_sentences(*parts: str) -> str:
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
    """Return lazy text as a value for JSON, for `restored`; other text as it is."""
    return text.kept() if isinstance(text, LazyText) else text


def restored(value: Any) -> Any:
    """Return what `kept` was given. Anything else it may find is text, or nothing."""
    if not isinstance(value, Mapping):
        return value
    try:
        if "form" in value:
            return Quantity(value["form"], float(value["number"]))
        values = {name: restored(each) for name, each in value["values"].items()}
        return Sentence(value["one"], values, value["many"], value["number"])
    except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError):
        return ""
