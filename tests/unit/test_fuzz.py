"""Whatever comes in, nothing breaks: labels, volumes, what NVML says, headers, the socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuspawner.backends.docker import volumes
from gpuspawner.backends.docker.listing import server_record
from gpuspawner.backends.docker.out_of_service import (
    LABEL,
    LABEL_BY,
    LABEL_SINCE,
    LABEL_WHY,
    parse_marks,
)
from gpuspawner.choices import form_stream
from gpuspawner.choices.options import Choice, restore_choice
from gpuspawner.dashboard.facts import Person, status
from gpuspawner.errors import Refused
from gpuspawner.gpus import nvml, nvml_queries
from gpuspawner.gpus.model import Holder, Lease
from gpuspawner.gpus.out_of_service import MAX_REASON_LENGTH, apply_marks
from gpuspawner.hub.control_socket import ControlSocket
from gpuspawner.i18n.languages import ENGLISH, MAX_HEADER_LENGTH, TRANSLATED, language_for
from gpuspawner.leases import labels
from gpuspawner.untrusted import parse_json, parse_yaml

from ..support.boards import BOSS, gpu, lease, picture, render, waits
from ..support.dashboards import check

DEEP = "[" * 2000 + "]" * 2000
# What engines and users can have in a text, with what parsers stumble over.
TEXT = st.text(max_size=60) | st.sampled_from(
    ["", "\x00", "\ud800", "a\nb", "%s %(num)s", "{0}{x}", "<script>", DEEP, "9" * 400, "../" * 9]
)
NAMES = (
    *(labels.LABEL_GPUS, labels.LABEL_USER, labels.LABEL_SERVER, labels.LABEL_UNTIL),
    *(labels.LABEL_GROUPS, labels.LABEL_HUB, labels.LABEL_IMAGE, labels.LABEL_SETTINGS),
)
LABELS = st.dictionaries(st.sampled_from(NAMES), TEXT)
ENTRY = st.fixed_dictionaries(
    {"Id": TEXT, "Labels": LABELS | st.none()},
    optional={"State": TEXT, "Created": st.integers(0, 2**40) | st.none()},
)


def shown(facts: dict[str, Any]) -> None:
    """Show a page of this, as the dashboard would send it."""
    sent = render(facts).encode()
    assert b"<script" not in sent
    assert len(sent) < 200_000


@example([{"Id": "x", "Labels": {labels.LABEL_GPUS: "", labels.LABEL_USER: "\ud800"}}])
@example([{"Id": "x", "Labels": dict.fromkeys(NAMES, "n" * (1 << 20))}])
@given(st.lists(ENTRY, max_size=4))
def test_no_container_s_labels_make_a_look_at_the_host_fail(found: list[Mapping[str, Any]]) -> None:
    servers = [server_record(each) for each in found]
    leases = labels.leases_of(servers, {}, "http://hub")
    assert len(leases) <= len(found)
    assert all(isinstance(each, Lease) for each in leases)
    # A page shows what is on them.
    seen = picture(
        *(gpu(n, each.holder, until=each.until) for n, each in enumerate(leases)),
        leases=[lease(each.holder, *each.gpus, until=each.until) for each in leases],
        queue=[waits(each.holder) for each in leases],
    )
    for person in (BOSS, Person("ada")):
        shown(check("Status", status(seen, person)))


def test_a_label_that_makes_no_sense_costs_its_own_field() -> None:
    good = labels.labels(Holder("ada"), "torch", ["GPU-1"], 100.0, ["lab"])
    for name in (labels.LABEL_GROUPS, labels.LABEL_UNTIL):
        server = labels.ServerRecord("1", {**good, name: DEEP})
        held = labels.lease_of(server)
        assert held is not None
        assert (held.holder, held.gpus) == (Holder("ada"), {"GPU-1"})
        assert (held.until, held.groups) == (
            (100.0, frozenset()) if name == labels.LABEL_GROUPS else (None, {"lab"})
        )


MARKS = st.dictionaries(
    st.sampled_from(
        [
            LABEL,
            LABEL_BY,
            LABEL_WHY,
            LABEL_SINCE,
        ]
    ),
    TEXT,
)


@example([{"Name": "x", "Labels": {LABEL: "GPU-1", LABEL_WHY: "w" * 5000}}])
@example([{"Name": "x", "Labels": {LABEL: "GPU-1", LABEL_WHY: "\ud800", LABEL_BY: "\ud800"}}])
@example([{"Name": "x", "Labels": dict.fromkeys([LABEL, LABEL_BY, LABEL_WHY], "w" * (1 << 20))}])
@given(st.lists(st.fixed_dictionaries({"Name": TEXT, "Labels": MARKS | st.none()}), max_size=4))
def test_no_volume_s_name_or_labels_make_a_look_at_the_host_fail(found: list[Any]) -> None:
    marked = parse_marks(found)
    gpus = apply_marks([gpu(n, uuid=uuid) for n, uuid in enumerate(marked)], marked)
    seen = check("Status", status(picture(*gpus, marks=marked), BOSS))
    assert all(len(each["reason"]) <= MAX_REASON_LENGTH + 100 for each in seen["gpus"])
    shown(seen)


@given(TEXT)
def test_a_volume_s_name_is_taken_or_refused(name: str) -> None:
    for check_one in (
        volumes.check_home,
        lambda each: volumes.check_courses({each: {"path": "/x"}}),
        lambda each: volumes.check_courses({"course": each}),
    ):
        with suppress(ValueError):
            assert check_one(name) is not None


@given(st.binary(max_size=100) | TEXT)
def test_what_nvml_calls_a_gpu_can_be_shown(said: Any) -> None:
    model = nvml_queries.query_text(lambda: said)
    assert model.isprintable() or model == ""
    assert len(model) <= nvml.MAX_TEXT
    shown(check("Status", status(picture(gpu(0, model=model)), BOSS)))


@example("x" * 65536)
@given(st.binary(max_size=100) | TEXT)
def test_nor_does_what_nvml_calls_an_error_fill_a_page(said: Any) -> None:
    class Failing(Exception):
        def __str__(self) -> str:
            return said  # NVML's library makes it, and pynvml decodes nothing

    state, reason, _ = nvml._failure_state(Failing())
    assert state == "unknown"
    assert len(str(reason)) < 2 * nvml.MAX_TEXT
    shown(check("Status", status(picture(gpu(0, state="unknown", reason=reason)), BOSS)))


def answering(**headers: str) -> Any:
    """Return a handler whose request has these headers, whatever no browser would send."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(request=SimpleNamespace(method="GET", headers=named))


@example("zh," * 5000)
@given(st.text(max_size=60) | st.text("enzh-TW,;q=01. ", max_size=5000))
def test_a_language_header_names_a_language_of_ours(header: str) -> None:
    # The hub remembers it for the next page.
    assert (
        len(form_stream.accept_language_of(answering(Accept_Language=header))) <= MAX_HEADER_LENGTH
    )
    assert language_for(header) in (ENGLISH, *TRANSLATED)
    assert language_for("zh-CN" + header[:20] + "," * 100_000) in (ENGLISH, *TRANSLATED)


@given(TEXT | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))
def test_what_the_form_s_script_asks_about_is_a_choice_or_none(header: str) -> None:
    form_stream.remember_request(answering(X_GPUSpawner_Choice=header))
    try:
        assert isinstance(restore_choice(form_stream.requested_choice()), Choice)
    finally:
        form_stream.remember_request(None)


@given(TEXT | st.binary(max_size=60))
def test_a_text_that_others_wrote_has_a_value_or_is_none(text: str | bytes) -> None:
    with suppress(ValueError):
        parse_json(text)
    if isinstance(text, str) and text != DEEP:  # PyYAML takes a second for that one
        with suppress(ValueError):
            parse_yaml(text)


def test_a_yaml_text_that_lies_too_deep_is_an_error_of_the_text() -> None:
    with pytest.raises(ValueError, match="its brackets lie too deep"):
        parse_yaml("[" * 700)


@pytest.mark.parametrize("text", ['!!int ""', "!!bool x", "!!timestamp x"])
def test_a_tag_that_does_not_fit_its_value_is_an_error_of_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="a tag in it doesn't fit its value"):
        parse_yaml(text)


# ---- The control socket --------------------------------------------------------------------------


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = {"user": JSON | st.just("ada"), "server": JSON | st.just("")}
BODY = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([DEEP.encode(), b'{"user": "ada", "hours": ' + DEEP.encode() + b"}"]),
    st.fixed_dictionaries(FIELDS, optional={"hours": JSON, "why": JSON}).map(
        lambda value: json.dumps(value).encode()
    ),
)


class Server:
    """A server with GPUs, as far as the socket knows one."""

    holder = Holder("ada")

    async def ensure_rules_applied(self) -> None:
        """Apply them."""

    def facts(self) -> dict[str, Any]:
        return {}

    def extend(self, *_: Any) -> float:
        raise Refused("It is too late.", status=409)

    def keep_alive(self) -> None:
        raise Refused("It is too late.", status=409)


async def answers(path: Path, requests: Sequence[tuple[str, str, bytes]]) -> list[int]:
    """Return the statuses of what a control socket answers, each with a sentence that is short."""
    nobody = cast(Any, None)
    log = logging.getLogger()
    control = ControlSocket(str(path), nobody, lambda: [Server()], log, {}, nobody, nobody, {})
    await control.begin()
    try:
        found = []
        for method, where, body in requests:
            reader, writer = await asyncio.open_unix_connection(str(path))
            head = f"{method} {where} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            first, _, said = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
            writer.close()
            found.append(int(first.split()[1]))
            assert len(json.loads(said)["error"]) < 400
        return found
    finally:
        control.close()


ACTIONS = ["/extend", "/here", "/out-of-service", "/in-service"]
PATHS = st.sampled_from(ACTIONS) | st.text("/ax%1.?=&", min_size=1, max_size=9).map(
    lambda rest: "/" + rest
)


@given(st.lists(st.tuples(st.sampled_from(["POST", "PUT"]), PATHS, BODY), min_size=1, max_size=5))
def test_nothing_sent_to_the_control_socket_makes_more_than_a_line(
    requests: list[tuple[str, str, bytes]],
) -> None:
    lines: list[logging.LogRecord] = []
    heard = logging.Handler()
    heard.emit = lines.append  # type: ignore[method-assign]
    logging.getLogger("tornado").addHandler(heard)
    try:
        with TemporaryDirectory() as folder:
            statuses = asyncio.run(answers(Path(folder) / "s", requests))
    finally:
        logging.getLogger("tornado").removeHandler(heard)
    assert all(400 <= status < 500 for status in statuses)
    assert len(lines) <= len(requests)
    for line in lines:
        assert line.exc_info is None
        assert len(line.getMessage()) < 1000
