"""A clock that can be set, for a program and those that it starts: nobody else notices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Shifts the time of day by the seconds in a file, and no other clock, as an administrator does.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift(void)
{
    char text[32] = "";
    int file = open(getenv("SHIFTED_CLOCK"), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(file);
    }
    return atol(text);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, now);
    if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        now->tv_sec += shift();
    return code;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}
"""


class Clock:
    """The time of day of the programs with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "shift"
        self._library = folder / "clock.so"
        (folder / "clock.c").write_text(SOURCE)
        words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library)]
        subprocess.run([*words, str(folder / "clock.c"), "-ldl"], check=True)
        self.set(0)

    def set(self, hours: float) -> None:
        """Set it to so many hours after the machine's."""
        new = self._file.with_suffix(".new")
        new.write_text(str(round(3600 * hours)))
        new.replace(self._file)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return an environment with this clock."""
        preloaded = " ".join(filter(None, [str(self._library), os.environ.get("LD_PRELOAD")]))
        return {**base, "LD_PRELOAD": preloaded, "SHIFTED_CLOCK": str(self._file)}
