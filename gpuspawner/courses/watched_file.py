"""A file that is read again when it changes."""

from __future__ import annotations

import stat
from pathlib import Path

# What tells that a file is another: device, inode, size, and when it was written, in nanoseconds.
Stamp = tuple[int, int, int, int]


class WatchedFile:
    """A file that is read again when it changes.

    Args:
        path: where it is.
        most: how large it may be, in bytes.
    """

    def __init__(self, path: str, most: int) -> None:
        self.path = Path(path)
        self._most = most
        self._stamp: Stamp | None = None

    def forget(self) -> None:
        """Have it read again, changed or not."""
        self._stamp = None

    def news(self) -> bytes | None:
        """Return its content if that is another than at the last look; else None.

        Raises:
            ValueError: it can't be read; the message names it and says why.
        """
        try:
            found = self.path.stat()
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp == self._stamp:
                return None
            # What was wrong with it stays so until it changes.
            self._stamp = stamp
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{self.path}: it is no file")
            with self.path.open("rb") as opened:
                content = opened.read(self._most + 1)
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}") from None
        if len(content) > self._most:
            raise ValueError(f"{self.path} is larger than {self._most} bytes")
        return content
