"""Commands that need root: as they are for root, with sudo for other users.

As a program it runs a command and gives the files that this leaves in the checkout to its owner.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .console import ROOT, Stop, finish, say

# Variables that sudo drops: the network's settings, and the caller's options.
KEPT = (
    *("http_proxy", "https_proxy", "ftp_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
    *("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"),
    *("DOCKER_HOST", "XDG_CACHE_HOME", "CI", "LANG", "PATH"),
)


def is_root() -> bool:
    """Return whether this process is root's."""
    return os.geteuid() == 0


def as_root(words: Sequence[str], purpose: str) -> list[str]:
    """Return the command that runs another one as root.

    Args:
        words: the other command.
        purpose: what it is for, for the error message.

    Raises:
        Stop: the user isn't root, and there is no sudo.
    """
    if is_root():
        return list(words)
    if shutil.which("sudo") is None:
        raise Stop(f"{purpose} takes root, and there is no sudo here: run the same command as root")
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    # A password would be in `ps` and in sudo's log; not every sudo can keep a variable by name.
    secret = [name for name, value in kept.items() if re.search("://[^/]*@", value)]
    plain = [f"{name}={value}" for name, value in kept.items() if name not in secret]
    keep = [f"--preserve-env={','.join(secret)}"] if secret else []
    # Else root's compiled modules would be left in the user's checkout.
    return ["sudo", *keep, "env", *plain, "PYTHONDONTWRITEBYTECODE=1", *words]


def give_to_owner(folder: Path) -> None:
    """Give root's files below a folder to the owner of the checkout."""
    owner = ROOT.stat()
    for path in [folder, *folder.rglob("*")]:
        try:
            if path.lstat().st_uid == 0:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        except FileNotFoundError:  # a database's journal comes and goes
            continue


def main() -> int:
    """Run the command line's command as root, and return its status."""
    command = sys.argv[1:]
    if is_root():
        status = _run(command)
        if ROOT.stat().st_uid != 0:
            give_to_owner(ROOT)
        return status
    say("the simulated GPU host takes root: going on with sudo")
    this = [sys.executable, "-m", "scripts.root", *command]
    return _run(as_root(this, "the simulated GPU host"))


def _run(command: Sequence[str]) -> int:
    """Run a command, which gets Ctrl-C itself; return its exit status once it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, check=False, preexec_fn=_heed_ctrl_c).returncode


def _heed_ctrl_c() -> None:
    # In the background of a script it is ignored, and so it would be in all that the tests start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


if __name__ == "__main__":
    finish(main)
