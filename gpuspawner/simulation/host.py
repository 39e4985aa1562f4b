"""`SimulatedHost`: a simulated NVML with a private Docker Engine, as a context manager."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import hook
from .library import BuildError, build
from .programs import SimulationError, require
from .running_host import ENVIRONMENT
from .simulation import Simulation
from .state import STATE_PATH_VARIABLE, State

HUB_IP_VARIABLE = "GPUSPAWNER_HUB_IP"

# Variables that would make a Docker client use another engine in spite of DOCKER_HOST.
_ELSEWHERE = ("DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")


def cache_folder() -> Path:
    """Return where images and volumes stay between runs: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "gpuspawner"


class SimulatedHost(Simulation):
    """A simulated NVML and a private Docker Engine that hands out its GPUs; a context manager.

    Needs root, Docker's programs, iproute2, iptables and a C compiler, and never touches the
    machine's own Docker Engine. When it ends, its containers are removed, and their named volumes
    stay.

    Args:
        state: what NVML reports at first.
        cache: the folder in which images and volumes are kept; None: `cache_folder()`. Two hosts
            at the same time use different folders in it.
        missing_functions: NVML functions that the library lacks, as an older driver's does.
        engine_root: a root folder with an engine of another version; None: the machine's own. See
            `engine_root.py`. Each version wants a `cache` of its own.
        hostname: what the engine calls the host; "": as the machine is called.
        engine_settings: further settings of daemon.json, for an engine whose default runtime is
            NVIDIA's; None: the engine is as it is installed.
    """

    def __init__(
        self,
        state: State,
        cache: str | os.PathLike[str] | None = None,
        *,
        missing_functions: Collection[str] = (),
        engine_root: str | os.PathLike[str] | None = None,
        hostname: str = "",
        engine_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._first_state = state
        self._cache = Path(cache) if cache is not None else cache_folder()
        self._missing_functions = missing_functions
        self._engine_root = Path(engine_root) if engine_root is not None else None
        self.hostname = hostname
        self._engine_settings = engine_settings
        self._keeper: subprocess.Popen[str] | None = None
        self._directory: Path | None = None
        self.network_namespace = ""
        """The file of its engine's network namespace."""
        self.hub_ip = ""
        """The host's address where containers reach a hub that listens on it."""
        self.storage_driver = ""
        """How the engine stores images: `overlay2`, or the much slower `vfs`."""

    def start(self) -> None:
        """Set everything up.

        Raises:
            SimulationError: that failed, and nothing of it is left; the message says what to do.
        """
        _check_machine(["dockerd"] if self._engine_root is None else ["chroot"])
        cache = self._cache.absolute()
        try:
            binaries = build(cache, self._missing_functions)
        except BuildError as error:
            raise SimulationError(str(error)) from error
        try:
            self._keeper = _start_keeper()
            self._directory = Path(self._ask("claim")["directory"])
            shutil.copytree(binaries.directory, self._directory / "nvml")
            self._first_state.write(self.state_path)
            root = str(self._engine_root.absolute()) if self._engine_root else ""
            about = self._ask(
                "start",
                cache=str(cache),
                engine_root=root,
                hostname=self.hostname,
                engine_settings=self._engine_settings,
            )
        except BaseException:
            if self._keeper is not None:
                # It may be waiting for the engine, and wouldn't notice the end of its input.
                self._keeper.terminate()
            self.stop()
            raise
        self.hub_ip = about["hub_ip"]
        self.storage_driver = about["driver"]
        self.network_namespace = about["network"]
        (self._directory / ENVIRONMENT).write_text(json.dumps(self.additions))

    def stop(self) -> None:
        """Take everything down, unless it is down already."""
        keeper, self._keeper = self._keeper, None
        self._directory = None
        if keeper is None:
            return
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.close()
        interrupted: KeyboardInterrupt | None = None
        while True:
            try:
                keeper.wait()
                break
            except KeyboardInterrupt as error:
                # Leaving now wouldn't be quicker: the keeper has heard of the end already.
                interrupted = error
        keeper.stdout.close()
        if keeper.returncode != 0:
            _sweep()
        if interrupted is not None:
            raise interrupted

    @property
    def is_up(self) -> bool:
        """Whether it runs, or is being set up."""
        return self._keeper is not None

    @property
    def directory(self) -> Path:
        """Its folder while it runs, with `state`, `docker.sock`, `dockerd.log`, `nvml/`…"""
        if self._directory is None:
            raise SimulationError("this simulated host isn't running: use it in a `with` block")
        return self._directory

    @property
    def state_path(self) -> Path:
        """The file with the state that NVML reports."""
        return self.directory / "state"

    @property
    def socket(self) -> Path:
        """The private engine's socket."""
        return self.directory / "docker.sock"

    @property
    def docker_host(self) -> str:
        """The private engine's address, as DOCKER_HOST wants it."""
        return f"unix://{self.socket}"

    @property
    def additions(self) -> dict[str, str]:
        """The environment variables that make a program see this host, with the whole PATH."""
        nvml = str(self.directory / "nvml")
        return {
            "DOCKER_HOST": self.docker_host,
            HUB_IP_VARIABLE: self.hub_ip,
            STATE_PATH_VARIABLE: str(self.state_path),
            # An empty entry would mean the current folder.
            "LD_LIBRARY_PATH": _joined(nvml, os.environ.get("LD_LIBRARY_PATH", "")),
            "PATH": _joined(nvml, os.environ.get("PATH", os.defpath)),
        }

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with `additions`, for programs on the simulated host."""
        kept = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
        return {**kept, **self.additions}

    def read(self) -> State:
        """Return the state that NVML reports now."""
        return State.read(self.state_path)

    def write(self, state: State) -> None:
        """Replace the state that NVML reports, at once, on the host and in running containers."""
        change(self.state_path, lambda _: state)

    def change(self, function: Callable[[State], State]) -> State:
        """Replace the state by what `function` returns for it; no concurrent change is lost."""
        return change(self.state_path, function)

    def stop_engine(self) -> None:
        """Stop the engine with SIGTERM: it stops its containers and keeps them."""
        self._ask("stop_engine")

    def kill_engine(self) -> None:
        """Kill the engine with SIGKILL: containers keep running until it is started again."""
        self._ask("kill_engine")

    def start_engine(self) -> None:
        """Start the engine again; as any engine does, it ends containers that it finds running."""
        self._ask("start_engine")

    def start_program(self, words: Sequence[str], log: str, **variables: str) -> Path:
        """Start a program on the host, which ends with it; return the file with its output.

        Args:
            words: the program and its arguments. It runs in the network of the host's engine.
            log: the name of that file, in the host's folder.
            variables: its environment variables, beside those by which it sees this host.
        """
        environment = {**self.additions, **variables}
        self._ask("start_program", words=list(words), variables=environment, log=log)
        return self.directory / log

    def _ask(self, action: str, **arguments: Any) -> Mapping[str, Any]:
        keeper = self._keeper
        if keeper is None:
            raise SimulationError("this simulated host isn't running: use it in a `with` block")
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(json.dumps({"do": action, **arguments}) + "\n")
            keeper.stdin.flush()
            line = keeper.stdout.readline()
        if not line:
            raise SimulationError("the process that keeps the simulated host was killed")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SimulationError(answer["error"])
        done: dict[str, Any] = answer["done"]
        return done


def change(state_path: Path, function: Callable[[State], State]) -> State:
    """Change the state of a simulated host and its running containers' views; return the new state.

    Args:
        state_path: the host's state file.
        function: returns the new state for the old one. If it raises, nothing is changed.
    """
    directory = state_path.parent
    with hook.locked(directory):
        state = function(State.read(state_path))
        state.write(state_path)
        for view in (directory / "views").iterdir():
            hook.refresh(directory, view.name)
    return state


def _start_keeper() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpuspawner.simulation.keeper"],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _sweep() -> None:
    """Remove what a killed keeper left: a new keeper does that before it begins."""
    _start_keeper().communicate('{"do": "claim"}\n')


def _joined(first: str, rest: str) -> str:
    return os.pathsep.join(filter(None, [first, *rest.split(os.pathsep)]))


def _check_machine(more: Sequence[str]) -> None:
    if sys.platform != "linux":
        raise SimulationError("a simulated host needs Linux: it is made of its namespaces")
    if os.geteuid() != 0:
        raise SimulationError(
            "a simulated host sets up a private Docker Engine and its network, which takes root: "
            "run it with sudo"
        )
    require([*more, "ip", "iptables", "mount", "nsenter", "unshare"])
