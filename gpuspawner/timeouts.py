"""Waiting with a timeout that loses no cancel.

Before Python 3.12 `asyncio.wait_for` loses a cancel that comes in the moment in which its awaitable
ends, or its time: a loop around it, or a step after it, then goes on for somebody who has left.
ref: https://github.com/python/cpython/issues/86296
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Return the result of an awaitable, which is cancelled where the caller is or time runs out.

    Args:
        seconds: the longest wait.
        awaitable: a coroutine or a future.

    Raises:
        asyncio.TimeoutError: time has run out.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # nobody may be left to retrieve it
