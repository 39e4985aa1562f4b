"""The process that sets a simulated host up, and takes it down even if its starter is killed.

`host.SimulatedHost` starts it in a session of its own, where no Ctrl-C reaches it, and tells it
what to do: a JSON object per line on standard input, an answer per line on standard output. When
the input ends, as its starter has ended or was killed, it takes everything down and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import cdi, cgroups, network, slots
from .engine import (
    Engine,
    adopt_orphans,
    configuration,
    forget_networks,
    joining,
    write_hook,
    write_runtime,
)
from .engine_root import version
from .programs import SimulationError

# Short, as the hub is gone already when the simulation ends.
GRACE_SECONDS = 2

PACKAGE_FOLDER = Path(__file__).resolve().parents[2]


class Keeper:
    """A simulated host's parts that are up, so that `end` takes down just these."""

    def __init__(self) -> None:
        self._slot: slots.Slot | None = None
        self._data_lock: int | None = None
        self._namespaces: network.Namespaces | None = None
        self._engine: Engine | None = None
        self._resolver: subprocess.Popen[str] | None = None
        self._group: Path | None = None
        self._programs: list[subprocess.Popen[bytes]] = []
        self.idle = False

    def reap(self, *_: object) -> None:
        """Reap the engine's ended processes while this process waits for no child of its own."""
        if self.idle and self._engine is not None:
            self._engine.reap()

    def claim(self) -> dict[str, Any]:
        """Claim a slot; return its folder, for the state and the library, as {"directory": …}."""
        self._slot = slots.claim()
        (self._slot.directory / "views").mkdir()
        return {"directory": str(self._slot.directory)}

    def start(
        self,
        cache: str,
        engine_root: str = "",
        hostname: str = "",
        engine_settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Set up the network and start the engine.

        Args:
            cache: the folder of the images and volumes.
            engine_root: the root folder with the engine's programs; "": the machine's own.
            hostname: what the engine calls the host; "": as the machine is called.
            engine_settings: further settings of the engine, whose default runtime is NVIDIA's
                then; None: it is as it is installed.

        Returns:
            Facts about the host for `SimulatedHost`, as a JSON value.
        """
        slot = self._slot
        assert slot is not None
        data = self._claim_data(Path(cache))
        root = Path(engine_root) if engine_root else None
        slot.prepare_machine()
        addresses = network.choose_addresses(slot.number, network.taken_networks())
        self._namespaces = network.open_namespaces(slot.name, addresses)
        network.add_rules(slot.name, addresses)
        group = self._group = cgroups.make(slot.name)
        write_hook(slot.directory, root)
        more = dict(engine_settings or {})
        if engine_settings is not None:
            more |= write_runtime(slot.directory, root)
        names = self._names(addresses, group)
        settings = configuration(
            slot.directory, data, slot.name, addresses, names, version(root), more
        )
        (slot.directory / "daemon.json").write_text(json.dumps(settings, indent=1))
        cdi.write(slot.directory, (slot.directory / "state").read_text())
        forget_networks(data)
        self._engine = Engine(slot.directory, self._namespaces, group, data, root, hostname)
        self._engine.start()
        self._engine.remove_containers(0)  # an earlier run's that was killed
        _, about = self._engine.ask("GET", "/info")
        network_of_host = f"/proc/{os.getpid()}/fd/{self._namespaces.net}"
        return {
            "hub_ip": str(addresses.host),
            "data": str(data),
            "driver": about["Driver"],
            "network": network_of_host,
        }

    def _claim_data(self, cache: Path) -> Path:
        """Return the first of the cache's data folders that no running engine uses."""
        cache.mkdir(parents=True, exist_ok=True)
        for number in range(slots.SLOTS):
            lock = os.open(cache / f"engine-{number}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._data_lock = lock
                data = cache / f"engine-{number}"
                data.mkdir(exist_ok=True)
                return data
            os.close(lock)
        raise SimulationError(f"all engines' folders in {cache} are in use")

    def _names(self, addresses: network.Addresses, group: Path) -> dict[str, list[str]]:
        """Return the engine's DNS settings: containers resolve the names that the host does."""
        servers = network.name_servers(network.RESOLV_CONF)
        usable = network.reachable_name_servers(servers)
        if servers and not usable:
            self._relay_names(str(addresses.host), servers[0], group)
            usable = [str(addresses.host)]
        domains = network.search_domains(network.RESOLV_CONF)
        settings = {"dns": usable, "dns-search": domains}
        return {key: values for key, values in settings.items() if values}

    def _relay_names(self, address: str, upstream: str, group: Path) -> None:
        self._resolver = subprocess.Popen(
            [sys.executable, "-m", "gpuspawner.simulation.resolver", address, upstream],
            cwd=PACKAGE_FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=joining(group, signal.SIGKILL),
        )
        assert self._resolver.stdout is not None
        said = self._resolver.stdout.readline().strip()
        if said not in ("ready", "taken"):
            raise SimulationError(f"names can't be relayed from {address} to {upstream}: {said}")

    def start_engine(self) -> dict[str, Any]:
        """Start the engine again after `stop_engine` or `kill_engine`."""
        assert self._engine is not None
        self._engine.start()
        return {}

    def stop_engine(self) -> dict[str, Any]:
        """Stop the engine with SIGTERM."""
        assert self._engine is not None
        self._engine.stop()
        return {}

    def kill_engine(self) -> dict[str, Any]:
        """Kill the engine with SIGKILL."""
        assert self._engine is not None
        self._engine.kill()
        return {}

    def start_program(
        self, words: list[str], variables: Mapping[str, str], log: str
    ) -> dict[str, Any]:
        """Start a program on the host, which ends with it.

        Args:
            words: the program and its arguments.
            variables: its environment variables, beside this process's.
            log: the name of the file in the host's folder for its output.
        """
        assert self._slot is not None
        assert self._namespaces is not None
        assert self._group is not None
        with (self._slot.directory / log).open("ab") as out:
            self._programs.append(
                subprocess.Popen(
                    self._namespaces.enter(words),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **variables},
                    cwd=PACKAGE_FOLDER,
                    start_new_session=True,
                    preexec_fn=joining(self._group, signal.SIGKILL),
                )
            )
        return {}

    def end(self) -> None:
        """Take everything down; a step that fails keeps no later one from being done."""
        with contextlib.ExitStack() as steps:
            if self._data_lock is not None:
                steps.callback(os.close, self._data_lock)
            if self._engine is not None:
                steps.callback(self._engine.reap)
            if self._slot is not None:
                steps.callback(self._slot.release)
            if self._namespaces is not None:
                steps.callback(self._namespaces.close)
            if self._resolver is not None:
                steps.callback(self._resolver.wait)
                steps.callback(self._resolver.kill)
            if self._engine is not None:
                steps.callback(self._engine.stop)
                steps.callback(self._engine.remove_containers, GRACE_SECONDS)


def _answer(answer: dict[str, Any]) -> None:
    # The starter may be gone, which the end of the input tells.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(answer), flush=True)


def _obey(keeper: Keeper, line: str) -> dict[str, Any]:
    words = json.loads(line)
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "claim": keeper.claim,
        "start": keeper.start,
        "start_engine": keeper.start_engine,
        "stop_engine": keeper.stop_engine,
        "kill_engine": keeper.kill_engine,
        "start_program": keeper.start_program,
    }
    try:
        return {"done": actions[words.pop("do")](**words)}
    except SimulationError as error:
        return {"error": str(error)}
    except Exception as error:
        # A fault of the simulation itself: its starter gets the whole traceback.
        return {"error": f"{error!r}\n{traceback.format_exc()}"}


def _work(keeper: Keeper) -> None:
    """Execute the commands on standard input until it ends, or until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, keeper.reap)
    adopt_orphans()
    try:
        while True:
            keeper.idle = True
            keeper.reap()
            line = sys.stdin.readline()
            keeper.idle = False
            if not line:
                break
            _answer(_obey(keeper, line))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        keeper.idle = False


def main() -> int:
    """Keep a simulated host until standard input ends, take it down, and return the exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    keeper = Keeper()
    try:
        _work(keeper)
    except SystemExit:
        pass
    finally:
        keeper.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
