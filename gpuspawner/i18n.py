"""The language of a page: the one place that knows which there are.

Every sentence of a page is passed through `gettext` or `ngettext` of a `Language`; what isn't a
page's (a refusal of the hub, a reason of NVML's) comes as it is.
"""

from __future__ import annotations

import gettext
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup


@dataclass(frozen=True)
class Language:
    """A language, with what a template needs of it.

    Args:
        tag: as HTML's `lang` wants it.
        catalogue: the sentences, by the English ones.
    """

    tag: str
    catalogue: gettext.NullTranslations

    def gettext(self, sentence: str, /, **values: Any) -> Markup:
        """Return a sentence of ours for HTML; values are escaped unless they are Markup."""
        return Markup(self.catalogue.gettext(sentence)) % values  # noqa: S704  # our own words

    def ngettext(self, one: str, many: str, number: int, /, **values: Any) -> Markup:
        """Return the sentence for a number, which it can name as `%(num)s`."""
        text = self.catalogue.ngettext(one, many, number)
        return Markup(text) % {"num": number, **values}  # noqa: S704  # our own words

    def context(self) -> Mapping[str, Any]:
        """Return what a template is rendered with."""
        return {"_": self.gettext, "ngettext": self.ngettext, "lang": self.tag}


def language_for(accept_language: str = "") -> Language:
    """Return the language for a browser's Accept-Language header. So far it is English."""
    return Language("en", gettext.NullTranslations())


def N_(sentence: str) -> str:
    """Mark a sentence that is translated where it is shown."""
    return sentence
