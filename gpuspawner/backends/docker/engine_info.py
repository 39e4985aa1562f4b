"""What the engine says of itself, read once for as long as it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ...leases.ledger import SharedRead


class EngineInfo:
    """The engine's answer to `GET /info`, kept until it may have been restarted.

    Args:
        read: asks the engine.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._read = SharedRead(read)
        self._kept: Mapping[str, Any] | None = None
        self._kept_at = 0.0
        self._forgotten = 0

    async def get(self, max_age: float = math.inf) -> Mapping[str, Any]:
        """Return the answer; raises what `read` raises.

        Args:
            max_age: how old it may be, in seconds.
        """
        if self._kept is not None and time.monotonic() - self._kept_at < max_age:
            return self._kept
        forgotten, began = self._forgotten, time.monotonic()
        answer = await self._read()
        # Else the engine was restarted meanwhile, and this may be what the last one said.
        if forgotten == self._forgotten:
            self._kept, self._kept_at = answer, began
        return answer

    def forget(self) -> None:
        """Have the next call ask anew, as the engine may have been restarted."""
        self._kept = None
        self._forgotten += 1
