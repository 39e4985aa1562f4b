"""A timeout for awaitables that never loses a cancel.

Before Python 3.12, `asyncio.wait_for` can lose a cancel that arrives just when its awaitable ends
or its time runs out. The caller then goes on, although its user has left.
ref: https://github.com/python/cpython/issues/86296
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Return the result of an awaitable; it is cancelled if the caller is, or if time runs out.

    Args:
        seconds: the timeout.
        awaitable: a coroutine or a future.

    Raises:
        asyncio.TimeoutError: time ran out.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # mark it as retrieved, as nobody else may do so
