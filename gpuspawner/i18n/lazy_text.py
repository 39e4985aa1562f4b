"""Lazy text, which is translated when it is shown.

A `LazyText` is a `str` in English: logs, exceptions and JSON contain the English text, and string
operations other than those below return plain English text. (Babel's `LazyProxy` and speaklater's
lazy strings aren't `str`, and lose their values when they are pickled or put into JSON.)
"""

from __future__ import annotations

import gettext
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Translator(Protocol):
    """What lazy text needs of a `languages.Language`."""

    @property
    def catalogue(self) -> gettext.NullTranslations:
        """The translations of English sentences."""

    @property
    def locale(self) -> Any:
        """A `babel.Locale`."""

    @property
    def names_machines(self) -> bool:
        """Whether who reads it may know the machines' names."""


class LazyText(str, ABC):
    """Text that can be translated to the language of whoever reads it."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the lazy text itself, so that `str()` of an exception is still lazy."""
        return self

    @abstractmethod
    def in_language(self, language: Translator) -> str:
        """Return the text in a language."""

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """Return the text as a JSON value for `restored`."""


class Sentence(LazyText):
    """A sentence, or a part of one, with its values.

    Args:
        one: the English sentence, with `%(name)s` for each value: its key in the catalogues.
        values: name -> text, number or lazy text.
        many: the plural form; "": there is none.
        number: the number that decides between the forms; `%(num)s` in the text.
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
        """Return the sentence in a language, in English if the translation is missing or broken."""
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
        except (KeyError, TypeError, ValueError):  # the translation has other values
            return str.__str__(self)

    def kept(self) -> dict[str, Any]:
        """Return the sentence as a JSON value, with its values."""
        values = {name: kept(value) for name, value in self.values.items() if name != "num"}
        return {"one": self.one, "many": self.many, "number": self.number, "values": values}


# Name -> function that formats a number for a `babel.Locale` or its name.
FORMATS: dict[str, Callable[[float, Any], str]] = {}


class Quantity(LazyText):
    """A number that is formatted for the reader's locale: a time, a duration.

    Args:
        form: a key of `FORMATS`.
        number: the number.
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
        """Return the number as formatted in a language."""
        return FORMATS[self.form](self.number, language.locale)

    def kept(self) -> dict[str, Any]:
        """Return the number as a JSON value."""
        return {"form": self.form, "number": self.number}


class MachineText(LazyText):
    """Text that names a machine, and what those read instead who may not know its name.

    As a `str` it is the latter: whatever forgets to ask who reads it, as JSON does, names nothing.

    Args:
        named: with the name.
        unnamed: without.
    """

    __slots__ = ("named", "unnamed")

    named: str
    unnamed: str

    def __new__(cls, named: str, unnamed: str) -> MachineText:
        """Make it."""
        self = super().__new__(cls, unnamed)
        self.named, self.unnamed = named, unnamed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as what it was made of."""
        return MachineText, (self.named, self.unnamed)

    def in_language(self, language: Translator) -> str:
        """Return the text for who reads it, in their language."""
        text = self.named if language.names_machines else self.unnamed
        return text.in_language(language) if isinstance(text, LazyText) else text

    def kept(self) -> dict[str, Any]:
        """Return both texts as a JSON value, for the hub's own services and its database."""
        return {"named": kept(self.named), "unnamed": kept(self.unnamed)}


def lazy_gettext(sentence: str, /, **values: Any) -> Sentence:
    """Return a sentence that is translated when it is shown."""
    return Sentence(sentence, values)


def lazy_ngettext(one: str, many: str, number: int, /, **values: Any) -> Sentence:
    """Return a sentence with a number, `%(num)s`, that is translated when it is shown."""
    return Sentence(one, values, many, number)


def N_(sentence: str) -> str:
    """Mark a text for the catalogues that is passed to `lazy_gettext` later, with its values."""
    return sentence


def join_sentences(*parts: str) -> str:
    """Join sentences; empty ones are left out."""
    first, *others = [part for part in parts if part] or [""]
    for other in others:
        # Not every language separates sentences with a space.
        first = lazy_gettext("%(first)s %(second)s", first=first, second=other)
    return first


def listed(parts: Sequence[str], last: str = "") -> str:
    """Join the items of a list: "a, b, c", or "a, b and c" if `last` is "and" (or "or")."""
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
    """Convert lazy text to a JSON value for `restored`; return other text as it is."""
    return text.kept() if isinstance(text, LazyText) else text


def restored(value: Any) -> Any:
    """Return the text of a JSON value made by `kept`; "" if it is broken."""
    if not isinstance(value, Mapping):
        return value
    try:
        if "named" in value:
            named, unnamed = restored(value["named"]), restored(value["unnamed"])
            if isinstance(named, str) and isinstance(unnamed, str):
                return MachineText(named, unnamed)
            return ""
        if "form" in value:
            return Quantity(value["form"], float(value["number"]))
        values = {name: restored(each) for name, each in value["values"].items()}
        return Sentence(value["one"], values, value["many"], value["number"])
    except (AttributeError, KeyError, OSError, OverflowError, TypeError, ValueError):
        return ""
