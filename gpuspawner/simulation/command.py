"""`gpuspawner simulate`: run a command on a simulated GPU host or cluster, or change what runs."""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import changes, cluster_changes
from .cluster import OLDEST_ENGINE, SimulatedCluster, name_of
from .engine_root import engine_for_cluster
from .host import SimulatedHost, cache_folder, change
from .mig import layout, partition
from .presets import PRESETS
from .programs import SimulationError
from .running_host import cluster_of, entered, environment_of, find_running
from .state import (
    DEFAULT_DRIVER,
    MAX_GPUS,
    MODELS,
    State,
    describe,
)
from .topologies import TOPOLOGIES

DEFAULT_MODEL = "A100-40GB"
DEFAULT_GPUS = 4
# A cluster whose hosts aren't described: with models that only one of them has.
DIFFERENT = ("A100-40GB:2", "T4:2@550.54.15", "H100@575.57.08")
MAX_NODES = 8

# Several signals at once, such as from a program that sends one to a process and to its group,
# count as one. A later one means: at once.
ONE_WISH_SECONDS = 0.5

SLOW_STORAGE = (
    "gpuspawner: images are stored by copying (vfs), slowly: the cache folder's file system can't "
    "be the base of an overlay. Set XDG_CACHE_HOME to a folder on ext4 or xfs that is no "
    "container's own"
)

_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80  # the signal came from the terminal, which has sent it to COMMAND as well


@dataclass(frozen=True)
class Change:
    """A change of the command line.

    Args:
        text: its words.
        make: of a host: returns the state after for the one before; of a cluster: changes that.
    """

    text: str
    make: Callable[[Any], Any]

    @property
    def is_of_cluster(self) -> bool:
        """Whether it is a cluster's."""
        return self.text.split()[:1] == ["node"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Run COMMAND on a simulated GPU host: it sees simulated GPUs through NVML and nvidia-smi,\n"
        "and a private Docker Engine that hands them out. Needs root. When it ends, nothing is\n"
        "left but images and volumes, in the user's cache folder."
    )
    of_cluster = cluster_changes.explanation()
    parser.epilog = f"changes:\n{changes.explanation()}\n\nchanges of a cluster:\n{of_cluster}"
    parser.usage = (
        "gpuspawner simulate [--gpus N] [--model NAME[:N]]… [--driver VERSION] [--mig …]… -- "
        "COMMAND…\n"
        "       gpuspawner simulate --preset NAME [--mig …]… -- COMMAND…\n"
        "       gpuspawner simulate --nodes N [--gpus N] [--model …]… -- COMMAND…\n"
        "       gpuspawner simulate --node MODELS --node MODELS… -- COMMAND…\n"
        "       gpuspawner simulate --change CHANGE…\n"
        "       gpuspawner simulate --join -- COMMAND…"
    )
    _add_host_arguments(parser)
    _add_cluster_arguments(parser)
    parser.add_argument(
        "--change",
        metavar="CHANGE",
        action="append",
        type=_change,
        default=[],
        help="what happens to the simulated host that runs, such as 'gpu 1 process 4242 2000', or "
        "to a cluster, such as 'node 2 cut 40'; may be repeated",
    )
    parser.add_argument(
        "--join",
        action="store_true",
        help="run COMMAND on the simulated host or cluster that runs, instead of one of its own",
    )
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER)


def _add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say what the host is like."""
    parser.add_argument(
        "--gpus", metavar="N", type=_gpus, help=f"how many, 0 to {MAX_GPUS} (default: 4)"
    )
    parser.add_argument(
        "--model",
        metavar="NAME[:N]",
        action="append",
        type=_model,
        default=[],
        help=f"which (default: {DEFAULT_MODEL}), and how many of them; may be repeated. "
        f"One of {', '.join(MODELS)}",
    )
    parser.add_argument("--driver", metavar="VERSION", help=f"default: {DEFAULT_DRIVER}")
    parser.add_argument(
        "--topology",
        choices=tuple(TOPOLOGIES),
        help="how the GPUs are connected, as `nvidia-smi topo -m` shows it; without it, that isn't "
        "told",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="a whole machine in place of --gpus, --model, --driver and --topology: "
        + "; ".join(f"{name}, {each.summary}" for name, each in PRESETS.items()),
    )
    parser.add_argument(
        "--mig",
        metavar="GPU:PROFILES",
        action="append",
        type=_mig,
        default=[],
        help="divide a GPU, by index or `all`, into MIG instances: '0: 3g.20gb, 1g.5gb x4'; "
        "`none` for MIG mode without instances; may be repeated",
    )


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments for several hosts."""
    parser.add_argument(
        "--nodes",
        metavar="N",
        type=_nodes,
        help=f"so many hosts as a Docker Swarm, 1 to {MAX_NODES}, and COMMAND where a hub of it "
        "is. Each is as the arguments above say; without any, they differ",
    )
    parser.add_argument(
        "--node",
        metavar="MODELS",
        action="append",
        type=_node,
        default=[],
        help="one host of a Docker Swarm: models as for --model, with commas, `none`, or a "
        "preset's name, and after @ the driver's version, as in A100-40GB:2,T4@550.54.15; may be "
        "repeated",
    )
    parser.add_argument(
        "--engine-root",
        metavar="FOLDER",
        type=Path,
        help="a root folder with Docker Engine 25 or newer for --nodes (default: this machine's "
        "own engine, if it is that new, else one that is made in the cache folder)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status.

    That is COMMAND's, or 128 plus the number of the signal that ended it; 2 for wrong arguments,
    1 if the simulated host can't be set up.
    """
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    try:
        if arguments.change:
            if words:
                raise ValueError("--change is for a simulated host that runs: leave COMMAND out")
            _apply(arguments.change)
            return 0
        if not words:
            raise ValueError("COMMAND is missing: gpuspawner simulate -- COMMAND")
        if arguments.join:
            return _join(words)
        states = _states(arguments)
    except ValueError as error:
        return _failed(error, 2)
    except SimulationError as error:
        return _failed(error, 1)
    try:
        if arguments.nodes or arguments.node:
            return _simulate_cluster(states, arguments.engine_root, words)
        return _simulate(states[0], words)
    except SimulationError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _states(arguments: argparse.Namespace) -> list[State]:
    """Return the state of each host that the arguments ask for."""
    if arguments.engine_root and not (arguments.nodes or arguments.node):
        raise ValueError("--engine-root is for --nodes")
    of_all = (arguments.gpus, arguments.driver, arguments.topology, arguments.preset)
    is_said = bool(arguments.model or arguments.mig or of_all != (None,) * len(of_all))
    if arguments.node:
        if is_said or arguments.nodes not in (None, len(arguments.node)):
            raise ValueError("each --node says all of its host: leave the others out")
        if len(arguments.node) > MAX_NODES:
            raise ValueError(f"there are at most {MAX_NODES} hosts")
        return list(arguments.node)
    if arguments.nodes and not is_said:
        return [_node(DIFFERENT[n % len(DIFFERENT)]) for n in range(arguments.nodes)]
    state = _described(arguments)
    for key, profiles in arguments.mig:
        state = divided(state, key, profiles)
    return [state] * (arguments.nodes or 1)


def _described(arguments: argparse.Namespace) -> State:
    """Return the state that the arguments ask for, before `--mig`."""
    named = [arguments.gpus, arguments.driver, arguments.topology]
    if arguments.preset:
        if arguments.model or named != [None] * len(named):
            raise ValueError("--preset says all of it: leave --gpus, --model, --driver, --topology")
        return PRESETS[arguments.preset].state()
    driver = arguments.driver or DEFAULT_DRIVER
    state = describe(models(arguments.model, arguments.gpus), driver)
    return TOPOLOGIES[arguments.topology](state) if arguments.topology else state


def _failed(error: Exception, status: int) -> int:
    print(f"gpuspawner: {error}", file=sys.stderr)
    return status


def _gpus(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= MAX_GPUS):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number from 0 to {MAX_GPUS}")
    return int(text)


def _nodes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_NODES):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number from 1 to {MAX_NODES}")
    return int(text)


def _node(text: str) -> State:
    """Return the host that `--node` describes."""
    what, _, driver = text.partition("@")
    if what in PRESETS:
        if driver:
            raise argparse.ArgumentTypeError(f"{text!r}: a preset says its driver itself")
        return PRESETS[what].state()
    named = [] if what == "none" else [_model(each.strip()) for each in what.split(",")]
    counted = [(name, 1 if count is None else count) for name, count in named]
    try:
        return describe(counted, driver or DEFAULT_DRIVER)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _model(text: str) -> tuple[str, int | None]:
    name, colon, count = text.partition(":")
    return model_called(name), _gpus(count) if colon else None


def _mig(text: str) -> tuple[str, list[str]]:
    key, colon, profiles = text.removeprefix("gpu ").partition(":")
    if not colon or not (key.strip().isdecimal() or key.strip() == "all"):
        raise argparse.ArgumentTypeError(
            f"{text!r} isn't a GPU's index, or all, and MIG profiles, as in '0: 1g.10gb x7'"
        )
    try:
        return key.strip(), layout(profiles)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def divided(state: State, key: str, profiles: Sequence[str]) -> State:
    """Return a host with a GPU, by index, or `all` of them divided into MIG instances.

    Raises:
        ValueError: there is no such GPU, or it can't have such instances.
    """
    for index in range(len(state.gpus)) if key == "all" else (int(key),):
        state = partition(state, index, profiles)
    return state


def _change(text: str) -> Change:
    try:
        parse = cluster_changes.parse if text.split()[:1] == ["node"] else changes.parse
        return Change(text, parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model_called(name: str) -> str:
    """Return the key of `MODELS` that a name means: the first that begins so for `A100`.

    Raises:
        argparse.ArgumentTypeError: there is none; the message lists the known models.
    """
    wanted = name.casefold()
    for known in MODELS:
        if wanted in (known.casefold(), MODELS[known].name.casefold()):
            return known
    for known in MODELS:
        if known.casefold().startswith(f"{wanted}-"):
            return known
    raise argparse.ArgumentTypeError(f"{name!r} isn't known; one of {', '.join(MODELS)}")


def models(named: Sequence[tuple[str, int | None]], gpus: int | None) -> list[tuple[str, int]]:
    """Return (model, number of GPUs) of each `--model`, with `--gpus` applied.

    Raises:
        ValueError: the two options contradict each other.
    """
    named = named or [(DEFAULT_MODEL, None)]
    if len(named) == 1 and named[0][1] is None:
        return [(named[0][0], DEFAULT_GPUS if gpus is None else gpus)]
    counted = [(name, 1 if count is None else count) for name, count in named]
    together = sum(count for _, count in counted)
    if gpus is not None and gpus != together:
        raise ValueError(f"--gpus says {gpus}, but the models make {together}: leave --gpus out")
    return counted


def simulated(state: State) -> str:
    """Return which GPUs a simulated host has, in words."""
    kinds = Counter(gpu.name for gpu in state.gpus)
    return (
        " and ".join(f"{count} × {name}" for name, count in kinds.items())  # noqa: RUF001
        or "a host without GPU"
    )


def announcement(state: State) -> str:
    """Return the line that says which GPUs are simulated."""
    said = f"{simulated(state)}, driver {state.driver}"
    return f"gpuspawner: simulating {said}; nothing here is a real GPU"


def _simulate(state: State, words: Sequence[str]) -> int:
    if shutil.which(words[0]) is None and words[0] != "nvidia-smi":
        return _failed(FileNotFoundError(f"{words[0]}: command not found"), 127)
    _end_by_signals()
    with SimulatedHost(state) as host:
        print(announcement(state), file=sys.stderr, flush=True)
        command = _Command()
        if host.storage_driver == "vfs":
            print(SLOW_STORAGE, file=sys.stderr, flush=True)
        return command.run(words, host.environment)


def _simulate_cluster(states: Sequence[State], root: Path | None, words: Sequence[str]) -> int:
    if shutil.which(words[0]) is None and words[0] != "nvidia-smi":
        return _failed(FileNotFoundError(f"{words[0]}: command not found"), 127)
    _end_by_signals()
    root, cache = engine_for_cluster(root, cache_folder(), OLDEST_ENGINE, _say)
    with SimulatedCluster(states, cache, root) as cluster:
        for number, state in enumerate(states, 1):
            _say(f"{name_of(number)}: {simulated(state)}, driver {state.driver}")
        _say("nothing here is a real GPU, and the machines are network namespaces of this one")
        command = _Command()
        if cluster.hosts[0].storage_driver == "vfs":
            print(SLOW_STORAGE, file=sys.stderr, flush=True)
        return command.run(cluster.enter(words), cluster.environment)


def _say(text: str) -> None:
    print(f"gpuspawner: {text}", file=sys.stderr, flush=True)


def _join(words: Sequence[str]) -> int:
    """Replace this process by COMMAND, on the running simulated host or in the hub's place."""
    directory = find_running()
    environment = environment_of(directory)
    if cluster := cluster_of(directory):
        words = entered(cluster.hub, words)
    try:
        os.execvpe(words[0], list(words), environment)  # noqa: S606
    except OSError as error:
        return _failed(SimulationError(f"{words[0]}: {error.strerror}"), 127)


def _end_by_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


class _Command:
    """COMMAND, which gets the signals that would end this process.

    They stay blocked here to the end, since nothing may interrupt the cleanup after COMMAND.
    """

    def __init__(self) -> None:
        ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        # A signal that is ignored, as under `nohup`, stays ignored.
        heard = {each for each in ends if signal.getsignal(each) != signal.SIG_IGN}
        self._watched = {*heard, signal.SIGCHLD}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)

    def run(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a command and return its exit status. The second signal to end it kills it."""
        try:
            process = subprocess.Popen(words, env=environment, preexec_fn=self._prepared())
        except OSError as error:
            return _failed(SimulationError(f"{words[0]}: {error.strerror}"), 126)
        wished = 0.0
        while process.poll() is None:
            got = signal.sigwaitinfo(self._watched)
            if got.si_signo == signal.SIGCHLD:
                continue
            if wished and time.monotonic() - wished > ONE_WISH_SECONDS:
                process.kill()
            elif not wished and got.si_code != _SI_KERNEL:
                process.send_signal(got.si_signo)
            wished = wished or time.monotonic()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _prepared(self) -> Callable[[], None]:
        library = ctypes.CDLL(None)

        def prepare() -> None:
            # If this process is killed, nobody waits for COMMAND, and its host is removed.
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

        return prepare


def _apply(wanted: Sequence[Change]) -> None:
    directory = find_running()
    cluster = cluster_of(directory)
    of_host: list[changes.Change] = []
    for each in wanted:
        if cluster is None and each.is_of_cluster:
            raise ValueError(f"{each.text!r}: a single host runs, and no cluster")
        if cluster is not None and not each.is_of_cluster:
            raise ValueError(f"{each.text!r}: of which host? As in 'node 2 {each.text}'")
        if cluster is None:
            of_host.append(each.make)
        else:
            each.make(cluster)
    path = directory / "state"

    def all_of_them(state: State) -> State:
        for make in of_host:
            state = make(state)
        return state

    try:
        if of_host:
            change(path, all_of_them)
    except OSError as error:
        raise SimulationError(f"{path} can't be changed: {error.strerror}") from error
