"""What users read when something is refused or breaks, as JupyterHub reads it off an exception."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import docker
import docker.errors
import jupyterhub.spawner
import pytest
import requests
from jupyterhub.utils import AnyTimeoutError, format_exception
from tornado import web

from gpuspawner.backends.docker.errors import explain, explain_end
from gpuspawner.errors import Refused
from gpuspawner.hub.http_errors import StartTimeout, container_died, failure, refusal
from gpuspawner.i18n.phrases import clock_time

# A sentence may hold what a user sent: signs of formatting and of HTML in it mean nothing.
SENTENCE = 'image must be one of torch, got "100%s<b>{0}".'


def answer(status: int, said: str, content_type: str = "application/json") -> Exception:
    """The exception that docker-py makes of an engine's answer."""
    response = requests.Response()
    response.status_code = status
    response.reason = "Reason"
    response.url = "http+docker://localhost/v1.43/containers/create"
    response.headers["Content-Type"] = content_type
    response._content = said.encode()
    client = docker.APIClient("tcp://127.0.0.1:9", version="1.43")
    with pytest.raises(docker.errors.APIError) as error:
        client._raise_for_status(response)
    return error.value


def test_docker_py_makes_the_errors_that_these_tests_are_about() -> None:
    assert isinstance(answer(404, '{"message": "No such image: x"}'), docker.errors.ImageNotFound)
    assert type(answer(404, '{"message": "No such container"}')) is docker.errors.NotFound


AWAY = "The Docker Engine of the GPU machine can't be reached. An administrator can mend it."
SLOW = "The Docker Engine of the GPU machine didn't answer in time."
NO_TOOLKIT = (
    "The Docker Engine can't hand out GPUs: the NVIDIA Container Toolkit isn't installed, "
    "or the engine wasn't restarted since."
)


CLIENT = docker.APIClient("tcp://127.0.0.1:9", version="1.43")


def refused_by_docker_py(call: Callable[[], Any]) -> Exception:
    """What docker-py raises of itself, without an engine."""
    with pytest.raises(docker.errors.DockerException) as error:
        call()
    return error.value


def wrong(words: str) -> str:
    return f"The hub's configuration of servers is wrong: {words}. An administrator can mend it."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            answer(404, '{"message": "No such image: lab/torch:2.7"}'),
            "The image isn't on this machine: No such image: lab/torch:2.7.",
        ),
        (
            answer(
                500,
                '{"message": "could not select device driver \\"nvidia\\" with capabilities: '
                '[[gpu]]"}',
            ),
            NO_TOOLKIT,
        ),
        (
            answer(500, '{"message": "write /var/lib/docker/tmp: no space left on device"}'),
            "The GPU machine's disk is full: write /var/lib/docker/tmp: no space left on device.",
        ),
        (
            answer(404, '{"message": "network gpuspawner not found"}'),
            "The servers' network gpuspawner isn't on the GPU machine any more. An administrator "
            "can make it anew.",
        ),
        (
            answer(409, '{"message": "Conflict. The container name is already in use."}'),
            "The Docker Engine refused: Conflict. The container name is already in use.",
        ),
        (
            answer(400, "invalid\n  mount\tconfig", "text/plain"),
            "The Docker Engine refused: invalid mount config.",
        ),
        (
            docker.errors.APIError("500 Server Error", None, b"caf\xff"),
            "The Docker Engine refused: caf\ufffd.",
        ),
        (
            docker.errors.APIError("500 Server Error"),
            "The Docker Engine refused: 500 Server Error.",
        ),
        (requests.exceptions.ConnectionError("refused"), AWAY),
        (requests.exceptions.ChunkedEncodingError("cut"), AWAY),
        (ConnectionResetError(104, "Connection reset by peer"), AWAY),
        (
            refused_by_docker_py(lambda: CLIENT.create_host_config(mem_reservation="12Q")),
            wrong(
                "The specified value for memory (12Q) should specify the units. The postfix should "
                "be one of the `b` `k` `m` `g` characters"
            ),
        ),
        (
            refused_by_docker_py(
                lambda: CLIENT.create_host_config(network_mode="host", port_bindings={8888: 8888})
            ),
            wrong('"host" network_mode is incompatible with port_bindings'),
        ),
        (
            refused_by_docker_py(lambda: docker.tls.TLSConfig(client_cert=("one",))),
            wrong(
                "client_cert must be a tuple of (client certificate, key file). "
                "TLS configurations should map the Docker CLI client configurations. See "
                "https://docs.docker.com/engine/articles/https/ for API details"
            ),
        ),
        (
            refused_by_docker_py(lambda: docker.APIClient("nowhere://x", version="1.43")),
            wrong("Invalid bind address protocol: nowhere://x"),
        ),
        (requests.exceptions.ReadTimeout("60 seconds"), SLOW),
        (requests.exceptions.ConnectTimeout("60 seconds"), SLOW),
        (KeyError("Id"), "KeyError: 'Id'"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
def test_an_error_of_the_engine_is_explained(error: Exception, sentence: str) -> None:
    assert explain(error) == sentence


def test_an_engine_that_is_not_there_is_explained(tmp_path: Path) -> None:
    socket = f"unix://{tmp_path}/docker.sock"
    with pytest.raises(docker.errors.DockerException) as asked_for_its_version:
        docker.APIClient(socket, version="auto")
    with pytest.raises(requests.exceptions.ConnectionError) as asked_for_anything:
        docker.APIClient(socket, version="1.43").containers()
    assert explain(asked_for_its_version.value) == explain(asked_for_anything.value) == AWAY


def test_a_long_answer_of_the_engine_is_cut() -> None:
    sentence = explain(answer(500, "x" * 10_000, "text/plain"))
    assert sentence == f"The Docker Engine refused: {'x' * 500}."


def logged(error: Any) -> str:
    """What the log and the REST API read: of tornado itself since 6.5, of the hub before."""
    if hasattr(error, "get_message"):
        return error.get_message()
    return error.log_message % error.args


def test_a_refusal_is_read_by_the_user_as_it_was_written() -> None:
    error = refusal(Refused(SENTENCE, status=403))
    assert isinstance(error, web.HTTPError)
    assert error.status_code == 403
    assert format_exception(error, only_jupyterhub=True) == (SENTENCE, None)
    assert logged(error) == SENTENCE


@pytest.mark.skipif(jupyterhub.version_info < (6,), reason="JupyterHub 5 has no such exception")
def test_a_refusal_is_counted_by_its_reason_and_logged_without_a_traceback() -> None:
    error = refusal(Refused(SENTENCE, "no_gpu", 503))
    assert isinstance(error, jupyterhub.spawner.SpawnException)
    assert error.reason == "no_gpu"


def test_a_failure_is_read_by_the_user_as_it_was_written() -> None:
    error = failure(SENTENCE)
    assert (error.status_code, failure(SENTENCE, 503).status_code) == (500, 503)
    assert format_exception(error, only_jupyterhub=True) == (SENTENCE, None)
    assert logged(error) == SENTENCE
    assert SENTENCE in str(error)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (None, "The server stopped while starting."),
        (0, "The server stopped while starting (exit 0)."),
        (1, "The server stopped while starting (exit 1)."),
        (137, "The server stopped while starting (exit 137)."),
    ],
)
def test_a_server_that_died_is_told_with_its_exit_code(code: int | None, sentence: str) -> None:
    error = container_died(code, [])
    assert isinstance(error, web.HTTPError)
    assert error.status_code == 500
    assert format_exception(error, only_jupyterhub=True) == (sentence, None)


NOW = datetime(2026, 11, 29, 12, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ExitCode": 137, "OOMKilled": True}, "its memory of 16 GB was full."),
        # A program of it was killed so, and it ended later.
        ({"ExitCode": 1, "OOMKilled": True}, "its program stopped (exit 1)."),
        ({"ExitCode": 0}, "it was shut down, from within or with the Docker Engine."),
        ({"ExitCode": 137, "OOMKilled": False}, "its container was stopped or removed, as by"),
        ({}, "its container was stopped or removed, as by a restart of the GPU machine or its"),
    ],
)
def test_why_a_server_ended_by_itself_is_told(state: dict[str, Any], words: str) -> None:
    said = explain_end(state, NOW, 16 << 30)
    assert words in said
    assert said.startswith(f"Your server ended at {clock_time(NOW)}: ")
    assert said.endswith(" Your files are kept.")
    without_limit = explain_end(state, NOW)
    assert ("machine's memory was full" in without_limit) == ("memory" in words)
    for at, when in (
        ("2026-11-29T09:12:13.123456789Z", NOW - 10067),
        ("0001-01-01", NOW),
        ("", NOW),
    ):
        if state:
            assert clock_time(when) in explain_end({**state, "FinishedAt": at}, NOW)


def with_lines(lines: list[str]) -> list[Any]:
    return [container_died(1, lines), StartTimeout(120, lines)]


@pytest.mark.parametrize("error", with_lines(["Traceback:", "  bad <config> & %s"]))
def test_a_servers_last_words_keep_their_lines_and_are_no_html(error: Exception) -> None:
    message, html = format_exception(error, only_jupyterhub=True)
    first, *lines = message.splitlines()
    assert first.endswith(". Its last words:")
    assert lines == ["Traceback:", "  bad <config> & %s"]
    assert html == f"<p>{first}</p><pre>Traceback:\n  bad &lt;config&gt; &amp; %s</pre>"


@pytest.mark.parametrize("error", with_lines([]))
def test_without_last_words_there_are_none(error: Exception) -> None:
    message, html = format_exception(error, only_jupyterhub=True)
    assert "last words" not in message
    assert html is None


def test_a_start_that_took_too_long_is_a_timeout_to_jupyterhub_and_a_sentence_to_the_user() -> None:
    error = StartTimeout(120.0, [])
    assert isinstance(error, AnyTimeoutError)
    sentence = "The server did not start within 120 seconds."
    assert (str(error), format_exception(error)[0]) == (sentence, sentence)
