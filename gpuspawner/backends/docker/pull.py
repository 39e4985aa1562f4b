"""Pulls of images: shared by all servers that need one, with progress and explained failures."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import docker.auth
import docker.errors
import docker.utils
import urllib3.exceptions

from ...errors import GPUSpawnerError
from ...i18n.lazy_text import N_, lazy_gettext
from ..base import Report
from . import errors as engine_errors

# The shortest time between two reports of a pull's progress.
REPORT_SECONDS = 0.3
# The time after which progress of less than a percent is reported.
REPEAT_SECONDS = 10

# Called with repository and tag, in a thread; yields the engine's events of the pull.
Stream = Callable[[str, str], Iterable[Mapping[str, Any]]]


class PullFailed(GPUSpawnerError):
    """The image can't be pulled. `str()` is a sentence for users, `said` the engine's message."""

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


@dataclass(frozen=True)
class Layer:
    """The progress of one layer, in bytes of its compressed form; `size` is None while unknown."""

    size: int | None = None
    fetched: int = 0
    unpacked: int = 0
    retrying: bool = False

    def after(self, status: str, detail: Mapping[str, Any]) -> Layer:
        """Return the layer after one more event of the engine; numbers never decrease.

        Args:
            status: the event's status.
            detail: its `progressDetail`.
        """
        # With containerd's image store, the progress of unpacking is in seconds.
        current = 0 if detail.get("units") else detail.get("current") or 0
        # For a resumed download, the engine reports only what was left.
        size = max(self.size or 0, self.fetched, detail.get("total") or 0)
        match status:
            case "Downloading":
                fetched = max(self.fetched, current)
                return Layer(max(size, fetched) if size else None, fetched, self.unpacked)
            case "Download complete":
                return Layer(size, size, self.unpacked)
            case "Extracting":
                return Layer(size, size, min(size, max(self.unpacked, current)))
            case "Pull complete":
                return Layer(size, size, size)
        return replace(self, retrying=status.startswith("Retrying"))


@dataclass(frozen=True)
class Progress:
    """The progress of a pull, from the engine's events so far."""

    layers: Mapping[str, Layer] = field(default_factory=dict)

    def after(self, event: Mapping[str, Any]) -> Progress:
        """Return the progress after one more event of the engine."""
        status, name = event.get("status") or "", event.get("id") or ""
        if not _LAYER.match(status):  # an event of the whole image, whose id is its tag
            return self
        layers = dict(self.layers)
        if status == "Already exists":
            layers.pop(name, None)
        else:
            known = layers.get(name, Layer())
            layers[name] = known.after(status, event.get("progressDetail") or {})
        return Progress(layers)

    @property
    def fetched(self) -> int:
        """The bytes downloaded so far."""
        return sum(layer.fetched for layer in self.layers.values())

    @property
    def unpacked(self) -> int:
        """The bytes, compressed, unpacked so far."""
        return sum(layer.unpacked for layer in self.layers.values())

    @property
    def total(self) -> int | None:
        """The bytes of all missing layers; None until the size of each is known."""
        sizes = [layer.size for layer in self.layers.values()]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def fraction(self) -> float:
        """The fraction of the pull that is done; downloading and unpacking are half of it each."""
        sizes = [layer.size for layer in self.layers.values() if layer.size is not None]
        if not sum(sizes):
            return 0.0
        # A layer of unknown size is estimated by the mean of the others.
        expected = sum(sizes) / len(sizes) * len(self.layers)
        return min(1.0, (self.fetched + self.unpacked) / (2 * max(expected, self.fetched)))

    @property
    def step(self) -> tuple[int, int]:
        """(0 while downloading or 1 while unpacking, percent of it; -1 if unknown)."""
        if not self.total:
            return 0, -1
        if self.fetched < self.total:
            return 0, 100 * self.fetched // self.total
        return 1, 100 * self.unpacked // self.total

    @property
    def retrying(self) -> bool:
        """Whether the engine waits to retry a download."""
        return any(layer.retrying for layer in self.layers.values())

    def words(self) -> str:
        """Return the progress as a sentence for users; "" if there is none yet."""
        unpacking, percent = self.step
        if unpacking and not self.unpacked:  # some engines don't report this progress
            return lazy_gettext("Unpacking the image")
        done, total = self.unpacked if unpacking else self.fetched, self.total
        words = ""
        if total:
            unit, name = _unit(total)
            of = {"percent": percent, "done": f"{done / unit:.1f}", "total": f"{total / unit:.1f}"}
            words = (
                lazy_gettext(
                    "Unpacking the image: %(percent)s %%, %(done)s of %(total)s %(unit)s",
                    **of,
                    unit=name,
                )
                if unpacking
                else lazy_gettext(
                    "Getting the image: %(percent)s %%, %(done)s of %(total)s %(unit)s",
                    **of,
                    unit=name,
                )
            )
        elif done >= 1e6:
            words = lazy_gettext("Getting the image: %(size)s so far", size=size_of(done))
        if self.retrying:
            words = words or lazy_gettext("Getting the image")
            return lazy_gettext("%(step)s (the registry failed, trying again)", step=words)
        return words


_LAYER = re.compile(
    r"(Pulling fs layer|Waiting|Downloading|Verifying Checksum|Download complete|Extracting|"
    r"Pull complete|Already exists)$|Retrying in "
)


def _unit(size: int) -> tuple[float, str]:
    return (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")


def size_of(size: int) -> str:
    """Return a size in bytes with a unit: "6.3 GB"."""
    unit, name = _unit(size)
    return f"{size / unit:.1f} {name}"


class ProgressFilter:
    """Selects the progress of a pull that is worth a report to users."""

    def __init__(self) -> None:
        self.last_report: tuple[float, str] | None = None
        self._step = (0, -1)
        self._mark: Any = None
        self._when = 0.0

    def next_report(self, progress: Progress, now: float) -> tuple[float, str] | None:
        """Return (fraction, sentence) if there is something new to report; it never decreases.

        Args:
            progress: the pull's progress.
            now: in seconds of any clock.
        """
        words, before = progress.words(), self.last_report or (0.0, "")
        fraction = max(before[0], progress.fraction)
        # The kind of sentence, and the percent of the whole.
        mark = (words[:8], progress.total is None, progress.retrying, int(100 * fraction))
        soon = mark == self._mark and now - self._when < REPEAT_SECONDS
        # The step decreases if the engine names another layer late.
        if words in ("", before[1]) or soon or progress.step < self._step:
            return None
        self._step, self._mark, self._when = progress.step, mark, now
        self.last_report = (fraction, words)
        return self.last_report


def split(reference: str) -> tuple[str, str]:
    """Return the repository and the tag or digest of an image reference.

    DockerSpawner's own function splits "name@sha256:…" at the wrong colon.
    """
    repository, tag = docker.utils.parse_repository_tag(reference)
    return repository, tag or "latest"


class Pulls:
    """The running pulls: at most one of each image, shared by all servers that need it.

    A pull goes on if all starts that wait for it are cancelled, since their users will try again.
    When this process ends, the engine cancels it.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Pull] = {}

    async def ensure(
        self,
        image: str,
        policy: str,
        inspect: Callable[[str], Any],
        stream: Stream,
        report: Report,
        most: int | None = None,
    ) -> None:
        """Pull an image if the policy requires it.

        Args:
            image: the image reference.
            policy: DockerSpawner's `pull_policy`.
            inspect: `await inspect(image)` raises docker.errors.NotFound if it isn't on the engine.
            stream: begins the pull.
            report: called with the progress.
            most: how many images are pulled at a time; None: any number.

        Raises:
            PullFailed: the image can't be pulled.
        """
        if policy == "skip":
            return
        if policy != "always":
            try:
                await inspect(image)
                return
            except docker.errors.NotFound:
                if policy == "never":
                    raise PullFailed(
                        lazy_gettext(
                            "The image %(image)s isn't on the GPU machine, and pull_policy is "
                            '"never": an administrator can put it there, with `docker pull` or '
                            "`gpuspawner image build`.",
                            image=image,
                        )
                    ) from None
        if most is not None and split(image) not in self._running and len(self._running) >= most:
            raise PullFailed(lazy_gettext("Too many images are pulled there now."))
        await self.pull(image, stream, report)

    async def pull(self, image: str, stream: Stream, report: Report) -> None:
        """Pull an image, or wait for the running pull of it.

        Args:
            image: the image reference.
            stream: begins the pull.
            report: called with the progress.

        Raises:
            PullFailed: the image can't be pulled.
        """
        key = split(image)
        pull = self._running.get(key)
        if pull is None:
            pull = self._running[key] = _Pull(lambda: stream(*key))
            pull.done.add_done_callback(lambda _: self._running.pop(key, None))
        report(
            0.0, lazy_gettext("Getting the image %(image)s. This can take minutes.", image=image)
        )
        if pull.progress_filter.last_report:
            report(*pull.progress_filter.last_report)
        pull.reports.append(report)
        try:
            # `asyncio.wait` doesn't cancel the pull if this waiter is cancelled.
            await asyncio.wait([pull.done])
        finally:
            pull.reports.remove(report)
        error = pull.done.result()
        if error is not None:
            raise PullFailed(explain_pull_failure(image, error), str(error)) from error


class _Pull:
    """A running pull, read in a daemon thread; the result of `done` is its error, or None.

    A hub that exits doesn't wait for a daemon thread, as it would for a pool's.
    """

    def __init__(self, stream: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Exception | None] = self._loop.create_future()
        self.reports: list[Report] = []
        self.progress_filter = ProgressFilter()
        self._progress = Progress()
        # Whether the event loop is about to report the progress.
        self._is_report_due = False
        threading.Thread(target=self._read, args=[stream], name="pull", daemon=True).start()

    def _read(self, stream: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        error: Exception | None = None
        try:
            for event in stream():
                if "error" in event:
                    detail = event.get("errorDetail") or {}
                    raise docker.errors.APIError(detail.get("message") or event["error"])
                self._progress = self._progress.after(event)
                if not self._is_report_due:
                    self._is_report_due = True
                    self._loop.call_soon_threadsafe(
                        self._loop.call_later, REPORT_SECONDS, self._report
                    )
        except urllib3.exceptions.HTTPError as broken:
            error = ConnectionError(str(broken))
        except Exception as failed:
            error = failed
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._finish, error)

    def _report(self) -> None:
        self._is_report_due = (
            False  # before the look, so that what comes after it is looked at again
        )
        if not self.done.done() and (
            told := self.progress_filter.next_report(self._progress, self._loop.time())
        ):
            for report in self.reports:
                report(*told)

    def _finish(self, error: Exception | None) -> None:
        if self._progress.fetched and error is None:
            for report in self.reports:
                report(
                    1.0,
                    lazy_gettext("Got the image: %(size)s", size=size_of(self._progress.fetched)),
                )
        self.done.set_result(error)


# (pattern of an engine's or registry's message, its meaning). The first match counts.
REASONS = (
    (r"no space left|disk quota exceeded", N_("the GPU machine's disk is full")),
    (
        r"no matching manifest|no match for platform",
        N_("there is none for this machine's processor"),
    ),
    (
        r"manifest unknown|manifest for .*not found|name unknown|repository name not known|"
        r"failed to resolve reference .*: not found$",
        N_("%(registry)s has no such image"),
    ),
    (
        # Docker Hub's message also for an image that doesn't exist.
        r"repository does not exist or may require",
        N_(
            "%(registry)s has no such image, or an administrator must log in there (`docker login`)"
        ),
    ),
    (
        r"toomanyrequests|too many requests|pull rate limit",
        N_("%(registry)s hands out no more for now; it can be tried again later"),
    ),
    (
        r"unauthorized|authentication required|no basic auth|denied|forbidden|authorization failed",
        N_("%(registry)s refused it; an administrator must log in there (`docker login`)"),
    ),
    (
        r"x509:|certificate|HTTP response to HTTPS client|tls: ",
        N_("the GPU machine doesn't trust the TLS certificate of %(registry)s, or it has none"),
    ),
    (
        r"connection refused|connection reset|no such host|no route to host|unreachable|timeout|"
        r"deadline exceeded|server misbehaving|name resolution",
        N_("%(registry)s can't be reached from the GPU machine"),
    ),
    (
        r"unexpected (HTTP )?status|verification failed|EOF|error parsing HTTP|invalid character|"
        r"wrong diff id|unknown blob|blob unknown|unexpected commit digest|failed size validation",
        N_("%(registry)s is broken: what it sends isn't the image"),
    ),
    (r"invalid reference format", N_("that isn't an image reference")),
)


def explain_pull_failure(image: str, error: Exception) -> str:
    """Return why a pull failed, as a sentence for users."""
    if not isinstance(error, docker.errors.APIError):
        return engine_errors.explain(error)
    reason = _reason(image, engine_errors.engine_message(error))
    return lazy_gettext("The image %(image)s can't be had: %(reason)s.", image=image, reason=reason)


def explain_push_failure(image: str, said: str) -> str:
    """Return why a push failed, as a sentence for administrators.

    Args:
        image: the image reference.
        said: what the engine says.
    """
    return f"the image {image} can't be pushed: {_reason(image, said)}"


def _reason(image: str, said: str) -> str:
    repository = split(image)[0]
    registry, name = lazy_gettext("the registry"), repository
    with suppress(docker.errors.DockerException):
        host, name = docker.auth.resolve_repository_name(repository)
        registry = lazy_gettext("the registry %(host)s", host=host)
    # The image's name may contain words of the patterns.
    words = said.replace(name, "")
    for pattern, meaning in REASONS:
        if re.search(pattern, words, re.IGNORECASE):
            return lazy_gettext(meaning, registry=registry)
    return said
