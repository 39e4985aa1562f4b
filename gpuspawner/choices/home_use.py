"""How much of what they may keep a user keeps at home."""

from __future__ import annotations

from dataclasses import dataclass

from ..i18n.lazy_text import join_sentences, lazy_gettext
from ..i18n.phrases import memory_words

# From which part of what is allowed on a user is warned.
NEARLY = 0.9


@dataclass(frozen=True)
class HomeUse:
    """How much a user keeps at home.

    Args:
        used: how many bytes the files took.
        allowed: how many they may take; None: no limit.
        enforced: whether more can't be written.
        at: when that was measured, in seconds since the epoch.
    """

    used: int
    allowed: int | None
    enforced: bool
    at: float

    @property
    def is_nearly_full(self) -> bool:
        """Whether to warn."""
        return self.allowed is not None and self.used >= NEARLY * self.allowed

    @property
    def words(self) -> str:
        """How much it is, as a sentence."""
        used = memory_words(self.used)
        if self.allowed is None:
            return lazy_gettext("Your files take %(used)s.", used=used)
        most = memory_words(self.allowed)
        return lazy_gettext("Your files take %(used)s of %(most)s.", used=used, most=most)

    @property
    def warning(self) -> str:
        """What to do, where it is nearly full; "" elsewhere."""
        if not self.is_nearly_full:
            return ""
        remove = lazy_gettext("Remove what you no longer need.")
        if self.enforced:
            full = lazy_gettext("When no room is left, nothing can be saved any more.")
            return join_sentences(full, remove)
        return remove
