"""Getting an image: one pull for all who want it, its progress in words, and why it failed."""

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

# Between two looks at a pull: what the engine says several times a second changes nothing for eyes.
REPORT_SECONDS = 0.3
# What has moved by less than a percent is told again after this time.
REPEAT_SECONDS = 10

# Called with repository and tag, in a thread; yields what the engine says while it pulls.
Stream = Callable[[str, str], Iterable[Mapping[str, Any]]]


class PullFailed(GPUSpawnerError):
    """The image can't be had. `str()` is a sentence for the user; `said` is the engine's word."""

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


@dataclass(frozen=True)
class Layer:
    """One layer on its way, in bytes as compressed; `size` is None while nobody has said it."""

    size: int | None = None
    fetched: int = 0
    unpacked: int = 0
    retrying: bool = False

    def after(self, status: str, detail: Mapping[str, Any]) -> Layer:
        """Return the layer after one more word of the engine about it; no number goes back."""
        # A store of containerd's counts an unpacking in seconds.
        current = 0 if detail.get("units") else detail.get("current") or 0
        # Of a download that was taken up again the engine says only what was left.
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
    """How far a pull is, from what the engine said so far."""

    layers: Mapping[str, Layer] = field(default_factory=dict)

    def after(self, event: Mapping[str, Any]) -> Progress:
        """Return the progress after one more event of the engine's."""
        status, name = event.get("status") or "", event.get("id") or ""
        if not _LAYER.match(status):  # of the whole image, with its tag for an id
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
        """Bytes that have arrived."""
        return sum(layer.fetched for layer in self.layers.values())

    @property
    def unpacked(self) -> int:
        """Bytes, as they came, that have been unpacked."""
        return sum(layer.unpacked for layer in self.layers.values())

    @property
    def total(self) -> int | None:
        """Bytes of all layers that weren't here; None until the engine has asked for each."""
        sizes = [layer.size for layer in self.layers.values()]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def fraction(self) -> float:
        """The part of the work that is done, where fetching and unpacking weigh the same."""
        sizes = [layer.size for layer in self.layers.values() if layer.size is not None]
        if not sum(sizes):
            return 0.0
        # A layer whose size isn't known is taken for one like the others.
        expected = sum(sizes) / len(sizes) * len(self.layers)
        return min(1.0, (self.fetched + self.unpacked) / (2 * max(expected, self.fetched)))

    @property
    def step(self) -> tuple[int, int]:
        """Of what is told: 0 while fetching or 1 while unpacking, and percent; -1 if unknown."""
        if not self.total:
            return 0, -1
        if self.fetched < self.total:
            return 0, 100 * self.fetched // self.total
        return 1, 100 * self.unpacked // self.total

    @property
    def retrying(self) -> bool:
        """Whether the engine waits to ask a registry again."""
        return any(layer.retrying for layer in self.layers.values())

    def words(self) -> str:
        """Return the progress in words; "" where there is none to tell."""
        unpacking, percent = self.step
        if unpacking and not self.unpacked:  # some engines don't say how far they are
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
    """Return a size in words, as "6.3 GB"."""
    unit, name = _unit(size)
    return f"{size / unit:.1f} {name}"


class ProgressFilter:
    """What of a pull's progress is worth telling: not each word of the engine, and none twice."""

    def __init__(self) -> None:
        self.last_report: tuple[float, str] | None = None
        self._step = (0, -1)
        self._mark: Any = None
        self._when = 0.0

    def next_report(self, progress: Progress, now: float) -> tuple[float, str] | None:
        """Return (fraction, words) if there is something new; no number ever goes back.

        Args:
            now: seconds of any clock.
        """
        words, before = progress.words(), self.last_report or (0.0, "")
        fraction = max(before[0], progress.fraction)
        # What kind of sentence it is, and the percent of the whole.
        mark = (words[:8], progress.total is None, progress.retrying, int(100 * fraction))
        soon = mark == self._mark and now - self._when < REPEAT_SECONDS
        # An engine that names a layer late makes the rest larger than it was.
        if words in ("", before[1]) or soon or progress.step < self._step:
            return None
        self._step, self._mark, self._when = progress.step, mark, now
        self.last_report = (fraction, words)
        return self.last_report


def split(reference: str) -> tuple[str, str]:
    """Return repository, and tag or digest, of an image reference.

    DockerSpawner's own takes "name@sha256:…" apart at the wrong colon.
    """
    repository, tag = docker.utils.parse_repository_tag(reference)
    return repository, tag or "latest"


class Pulls:
    """The pulls that are under way: one of each image, for all who want it.

    One goes on when nobody waits for it any more, since whoever gave up out of impatience tries
    again, and finds it where it is. It ends with this process, which the engine notices.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Pull] = {}

    async def ensure(
        self, image: str, policy: str, inspect: Callable[[str], Any], stream: Stream, report: Report
    ) -> None:
        """Get an image if it is needed.

        Args:
            policy: DockerSpawner's `pull_policy`.
            inspect: `await inspect(image)` raises docker.errors.NotFound where it isn't there.

        Raises:
            PullFailed: it can't be had.
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
        await self.pull(image, stream, report)

    async def pull(self, image: str, stream: Stream, report: Report) -> None:
        """Pull an image, or wait for the pull of it that is under way.

        Raises:
            PullFailed: it can't be had.
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
            # It isn't the waiter's to cancel.
            await asyncio.wait([pull.done])
        finally:
            pull.reports.remove(report)
        error = pull.done.result()
        if error is not None:
            raise PullFailed(explain_pull_failure(image, error), str(error)) from error


class _Pull:
    """One pull, read in a thread of its own; `done` becomes None or what it failed with.

    An own thread, and a daemon: a hub that ends doesn't wait for it, as it would for a pool's.
    """

    def __init__(self, stream: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Exception | None] = self._loop.create_future()
        self.reports: list[Report] = []
        self.progress_filter = ProgressFilter()
        self._progress = Progress()
        # Whether the event loop will look at the progress soon.
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
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
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


# What engines and registries write -> what it means. The first that matches counts.
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
        # Docker Hub's word for what isn't there as well.
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
    """Return why a pull failed, in a sentence for the user."""
    if not isinstance(error, docker.errors.APIError):
        return engine_errors.explain(error)
    said, repository = engine_errors.engine_message(error), split(image)[0]
    registry, name = lazy_gettext("the registry"), repository
    with suppress(docker.errors.DockerException):
        host, name = docker.auth.resolve_repository_name(repository)
        registry = lazy_gettext("the registry %(host)s", host=host)
    # The name's own words are no reasons.
    words = said.replace(name, "")
    for pattern, meaning in REASONS:
        if re.search(pattern, words, re.IGNORECASE):
            meant = lazy_gettext(meaning, registry=registry)
            return lazy_gettext(
                "The image %(image)s can't be had: %(reason)s.", image=image, reason=meant
            )
    return lazy_gettext("The image %(image)s can't be had: %(reason)s.", image=image, reason=said)
