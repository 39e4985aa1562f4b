"""The addresses that the hub and its proxy will listen on, as jupyterhub_config.py has them."""

from __future__ import annotations

import re
import socket

from .console import ROOT, Stop

CONFIG = ROOT / "jupyterhub_config.py"


def public_url() -> str:
    """What people open in a browser."""
    return _setting(r"JupyterHub\.bind_url", "http://127.0.0.1:8000").rstrip("/")


def check_ports() -> None:
    """Stop if somebody else listens where the proxy will, on this machine's side."""
    api = _setting(r"ConfigurableHTTPProxy\.api_url", "http://127.0.0.1:8001")
    for url, setting in (
        (public_url(), "c.JupyterHub.bind_url"),
        (api, "c.ConfigurableHTTPProxy.api_url"),
    ):
        host, port = _parts(url)
        check_port(host, port, setting)


def check_port(host: str, port: int, setting: str) -> None:
    """Stop if somebody else listens at an address."""
    with socket.socket() as probe:
        # Connections that ended a moment ago don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Stop(
                f"port {port} of {host or 'this machine'} can't be had ({error.strerror}): end "
                f"what listens there (`ss -ltnp` shows it), or set another as `{setting}` in "
                "jupyterhub_config.py"
            ) from error


def hub_port() -> int:
    """The port of the hub itself, at the servers' network's address."""
    found = re.search(r"^c\.JupyterHub\.hub_port\s*=\s*(\d+)", CONFIG.read_text(), re.MULTILINE)
    return int(found[1]) if found else 8081


def dashboard_port() -> int | None:
    """The dashboard's port, at the same address; None where there is no dashboard."""
    found = re.search(r"hub_ip\}:(\d+)\"", CONFIG.read_text())
    return int(found[1]) if found else None


def _setting(name: str, otherwise: str) -> str:
    """A text in the configuration. To run it would need the engine that isn't there yet."""
    found = re.search(rf"""^c\.{name}\s*=\s*["']([^"']+)""", CONFIG.read_text(), re.MULTILINE)
    return found[1] if found else otherwise


def _parts(url: str) -> tuple[str, int]:
    found = re.match(r"https?://(?:\[(.*)\]|([^:/]*))(?::(\d+))?", url)
    if found is None:
        raise Stop(f"{url!r} in jupyterhub_config.py isn't an address like http://127.0.0.1:8000")
    host = found[1] or found[2]
    return ("" if host in ("*", "::") else host), int(found[3] or 80)
