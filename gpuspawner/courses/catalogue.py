"""The courses of a hub: those of the configuration, and of a file that is read when it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..leases.audit_log import one_line
from .model import Course
from .reading import MAX_FILE, ReadCourses, problems_of, read_courses, read_file

# What tells that a file is another: device, inode, size, and when it was written, in nanoseconds.
Stamp = tuple[int, int, int, int]


class CourseCatalogue:
    """The courses of a hub.

    An entry of the file that is wrong is named in the log, once, and what it said before stays; so
    do all of them where the file can't be read.

    Args:
        declared: the trait `courses`, which has been checked.
        file: the trait `courses_file`; "": there is none.
        log: a logger.
    """

    def __init__(self, declared: Mapping[str, Any], file: str, log: Any) -> None:
        self._declared = dict(read_courses(declared, "courses").courses)
        self._file = Path(file) if file else None
        self._log = log
        self._stamp: Stamp | None = None
        self._of_file: dict[str, Course] = {}
        self._said: frozenset[str] = frozenset()
        self._current = self._declared

    def current(self) -> Mapping[str, Course]:
        """Return key -> course, as they are declared now. The same object until one changes."""
        if self._file is not None:
            self._look(self._file)
        return self._current

    def _look(self, file: Path) -> None:
        try:
            found = file.stat()
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            read = self._read(file)
        except (OSError, ValueError) as error:
            words = str(error.strerror if isinstance(error, OSError) else error)
            named = f"{file}: {words}" if isinstance(error, OSError) else words
            self._say({named + (". The courses of before stay" if self._of_file else "")})
            return
        kept = {key: self._of_file[key] for key in read.problems if key in self._of_file}
        self._of_file = {**read.courses, **kept}
        twice = self._of_file.keys() & self._declared.keys()
        problems = {
            f"{each}{'. What it said before stays' if key in kept else '. It is left out'}"
            for key, each in read.problems.items()
        }
        problems |= {f"{file}: course {key!r} is in c.GPUSpawner.courses as well" for key in twice}
        self._say(problems)
        self._current = {**self._of_file, **self._declared}
        self._log.info("Courses as of %s: %s", one_line(file), one_line(", ".join(self._current)))

    def _read(self, file: Path) -> ReadCourses:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ValueError(f"{file} is larger than {MAX_FILE} bytes")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ValueError(f"{file}, line {line}: it isn't UTF-8") from None
        return read_file(text, os.fspath(file))

    def _say(self, problems: set[str]) -> None:
        """Log each problem that wasn't there at the last look."""
        for each in sorted(problems - self._said):
            self._log.error("%s", one_line(each))
        self._said = frozenset(problems)


def check_courses(entries: Any) -> dict[str, Any]:
    """Validate the trait `courses`, and return it.

    Raises:
        ValueError: an entry is wrong; the message names it.
    """
    read = read_courses(entries, "courses")
    for problem in problems_of(read):
        raise ValueError(problem)
    return dict(entries)
