"""`gpuspawner dashboard`: the dashboard's process, which the hub starts as a service."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import secrets
import signal
import sys
from typing import Any
from urllib.parse import urlparse

from tornado import web
from tornado.httpserver import HTTPServer

from ..hub.connections import allow_many_connections
from ..leases.audit_log import one_line
from ..timeouts import within
from . import handlers
from .actions import Actions
from .login import Login
from .monitor import HostReader, HubReader, Monitor

# How long to wait for the address: the dashboard of a killed hub may still use the port, and a hub
# in another container may be about to make the network.
PORT_SECONDS = 60
WAITED_FOR = {
    errno.EADDRINUSE: "the port is in use still",
    errno.EADDRNOTAVAIL: "this machine doesn't have the address yet",
}
# How long a connection may be idle; the proxy keeps some for its next requests.
IDLE_SECONDS = 60
# The longest line of the log, but for tracebacks, in characters.
MAX_LINE = 600
NEEDED = ("JUPYTERHUB_SERVICE_URL", "JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_API_TOKEN")

log = logging.getLogger("gpuspawner.dashboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.add_argument(
        "--names",
        choices=("admins", "everybody"),
        default="admins",
        help="who reads whose GPUs are whose",
    )
    parser.add_argument(
        "--socket",
        default="gpuspawner.sock",
        help="the hub's c.GPUSpawner.control_socket (default: %(default)s)",
    )
    parser.add_argument(
        "--from-hub",
        action="store_true",
        help="have the hub read the GPUs and the Docker Engine: neither is needed here then",
    )


class ShortLines(logging.Formatter):
    """Formatter of the log: the libraries that we use log whatever a request has, at any length."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return one line, which is cut where it is too long."""
        line = one_line(super().formatMessage(record)[: MAX_LINE + 1])
        return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


def run(arguments: argparse.Namespace) -> int:
    """Serve until the hub ends it."""
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        print(
            f"gpuspawner: {missing[0]} isn't set. The dashboard is a service of JupyterHub's, "
            "which starts it: see c.JupyterHub.services in jupyterhub_config.py.",
            file=sys.stderr,
        )
        return 2
    if os.environ.get("JUPYTERHUB_SSL_CERTFILE"):
        print(
            "gpuspawner: the dashboard doesn't work with c.JupyterHub.internal_ssl. Take it out of "
            "c.JupyterHub.services, or leave that out.",
            file=sys.stderr,
        )
        return 2
    written = logging.StreamHandler()
    written.setFormatter(ShortLines("[%(levelname)1.1s %(asctime)s dashboard] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[written])
    # JupyterHub logs for each request with a token that it skips the XSRF check.
    application_log = logging.getLogger("tornado.application")
    application_log.setLevel(logging.WARNING)
    application_log.addFilter(lambda record: not str(record.msg).startswith("Skipping XSRF check"))
    return asyncio.run(_serve(arguments))


def application(arguments: argparse.Namespace, environment: dict[str, str]) -> web.Application:
    """Return the service.

    Args:
        arguments: `names`, `socket` and `from_hub`.
        environment: the environment variables that JupyterHub sets for its services.
    """
    auth = Login.instance()
    api = environment.get("JUPYTERHUB_API_URL", "")
    reader: HubReader | HostReader = (
        HubReader(arguments.socket) if arguments.from_hub else HostReader(arguments.socket, api)
    )
    monitor = Monitor(reader.read, reader.sample)
    prefix = environment["JUPYTERHUB_SERVICE_PREFIX"]
    shared: dict[str, Any] = {
        "monitor": monitor,
        "actions": Actions(monitor, arguments.socket, auth.api_url, arguments.from_hub),
        "names": arguments.names,
    }
    return web.Application(
        handlers.routes(prefix, environment.get("JUPYTERHUB_BASE_URL", "/"), shared),
        # Only what is worth a line: pages ask every few seconds.
        log_function=_log_request,
        # Signed cookies end with the process; the hub's log-in goes on, so nobody is asked again.
        cookie_secret=secrets.token_bytes(32),
        static_path=str(handlers.FOLDER / "static"),
        static_url_prefix=f"{prefix}static/",
        static_handler_class=handlers.Static,
        compress_response=True,
        monitor=monitor,
    )


def server_of(service: web.Application) -> HTTPServer:
    """Return a server with limits: on a request's size, and on how long a connection is idle."""
    return HTTPServer(
        service,
        xheaders=True,
        max_body_size=handlers.MAX_READ_BYTES,
        body_timeout=IDLE_SECONDS,
        idle_connection_timeout=IDLE_SECONDS,
    )


async def _serve(arguments: argparse.Namespace) -> int:
    allow_many_connections()
    parent = os.getppid()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    service = application(arguments, dict(os.environ))
    server = server_of(service)
    where = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    await _listen(server, where.port or 80, where.hostname or "127.0.0.1")
    history = asyncio.ensure_future(service.settings["monitor"].keep_history())
    while not ended.is_set():
        # A hub that was killed can't end us, and the next one starts its own.
        if os.getppid() != parent:
            break
        try:
            await within(0.5, ended.wait())
        except asyncio.TimeoutError:
            continue
    server.stop()
    history.cancel()
    return 0


async def _listen(server: HTTPServer, port: int, address: str) -> None:
    deadline = asyncio.get_running_loop().time() + PORT_SECONDS
    told: int | None = None
    while True:
        try:
            server.listen(port, address)
            return
        except OSError as error:
            if error.errno not in WAITED_FOR or asyncio.get_running_loop().time() > deadline:
                raise
            if error.errno != told:
                log.warning("%s:%d: %s; waiting", address, port, WAITED_FOR[error.errno])
            told = error.errno
            await asyncio.sleep(0.5)


def _log_request(handler: web.RequestHandler) -> None:
    if handler.get_status() >= 500:
        where = handler.request.path[: handlers.MAX_LOGGED]
        log.warning("%d %s %s", handler.get_status(), handler.request.method, where)
