"""The addresses of the hub, the proxy and the dashboard, as in jupyterhub_config.py."""

from __future__ import annotations

import re
import socket

from .console import ROOT, Stop

CONFIG = ROOT / "jupyterhub_config.py"


def public_url() -> str:
    """Return the URL for browsers."""
    return _setting(r"JupyterHub\.bind_url", "http://127.0.0.1:8000").rstrip("/")


def check_ports() -> None:
    """Raise Stop if another process listens at the proxy's addresses."""
    api = _setting(r"ConfigurableHTTPProxy\.api_url", "http://127.0.0.1:8001")
    for url, setting in (
        (public_url(), "c.JupyterHub.bind_url"),
        (api, "c.ConfigurableHTTPProxy.api_url"),
    ):
        host, port = _parts(url)
        check_port(host, port, setting)


def check_port(host: str, port: int, setting: str) -> None:
    """Raise Stop, naming the setting to change, if another process listens at an address."""
    with socket.socket() as probe:
        # Connections that have just ended don't count.
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
    """Return the hub's port, at the address of the servers' network."""
    found = re.search(r"^c\.JupyterHub\.hub_port\s*=\s*(\d+)", CONFIG.read_text(), re.MULTILINE)
    return int(found[1]) if found else 8081


def dashboard_port() -> int | None:
    """Return the dashboard's port, at the same address; None without a dashboard."""
    found = re.search(r"hub_ip\}:(\d+)\"", CONFIG.read_text())
    return int(found[1]) if found else None


def _setting(name: str, otherwise: str) -> str:
    """Return a setting, by a search of the configuration's text, as running it needs an engine."""
    found = re.search(rf"""^c\.{name}\s*=\s*["']([^"']+)""", CONFIG.read_text(), re.MULTILINE)
    return found[1] if found else otherwise


def _parts(url: str) -> tuple[str, int]:
    found = re.match(r"https?://(?:\[(.*)\]|([^:/]*))(?::(\d+))?", url)
    if found is None:
        raise Stop(f"{url!r} in jupyterhub_config.py isn't an address like http://127.0.0.1:8000")
    host = found[1] or found[2]
    return ("" if host in ("*", "::") else host), int(found[3] or 80)
