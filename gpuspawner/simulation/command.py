"""`gpuspawner simulate`: run a command on a simulated GPU host, or change a running host."""

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
from typing import NoReturn

from . import changes
from .host import SimulatedHost, change
from .mig import layout, partition
from .presets import PRESETS
from .programs import SimulationError
from .running_host import environment_of, find_running
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this subcommand's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Run COMMAND on a simulated GPU host: it sees simulated GPUs through NVML and nvidia-smi,\n"
        "and a private Docker Engine that hands them out. Needs root. When it ends, nothing is\n"
        "left but images and volumes, in the user's cache folder."
    )
    parser.epilog = f"changes:\n{changes.explanation()}"
    parser.usage = (
        "gpuspawner simulate [--gpus N] [--model NAME[:N]]… [--driver VERSION] [--mig …]… -- "
        "COMMAND…\n"
        "       gpuspawner simulate --preset NAME [--mig …]… -- COMMAND…\n"
        "       gpuspawner simulate --change CHANGE…\n"
        "       gpuspawner simulate --join -- COMMAND…"
    )
    _add_host_arguments(parser)
    parser.add_argument(
        "--change",
        metavar="CHANGE",
        action="append",
        type=_change,
        default=[],
        help="what happens to the simulated host that runs, such as 'gpu 1 process 4242 2000'; "
        "may be repeated",
    )
    parser.add_argument(
        "--join",
        action="store_true",
        help="run COMMAND on the simulated host that runs, instead of one of its own",
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
        state = _described(arguments)
        for key, profiles in arguments.mig:
            state = divided(state, key, profiles)
    except ValueError as error:
        return _failed(error, 2)
    except SimulationError as error:
        return _failed(error, 1)
    try:
        return _simulate(state, words)
    except SimulationError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


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


def _change(text: str) -> changes.Change:
    try:
        return changes.parse(text)
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


def announcement(state: State) -> str:
    """Return the line that says which GPUs are simulated."""
    kinds = Counter(gpu.name for gpu in state.gpus)
    what = (
        " and ".join(f"{count} × {name}" for name, count in kinds.items())  # noqa: RUF001
        or "a host without GPU"
    )
    return f"gpuspawner: simulating {what}, driver {state.driver}; nothing here is a real GPU"


def _simulate(state: State, words: Sequence[str]) -> int:
    if shutil.which(words[0]) is None and words[0] != "nvidia-smi":
        return _failed(FileNotFoundError(f"{words[0]}: command not found"), 127)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    with SimulatedHost(state) as host:
        print(announcement(state), file=sys.stderr, flush=True)
        command = _Command()
        if host.storage_driver == "vfs":
            print(SLOW_STORAGE, file=sys.stderr, flush=True)
        return command.run(words, host.environment)


def _join(words: Sequence[str]) -> int:
    """Replace this process by COMMAND, on the running simulated host."""
    environment = environment_of(find_running())
    try:
        os.execvpe(words[0], list(words), environment)  # noqa: S606
    except OSError as error:
        return _failed(SimulationError(f"{words[0]}: {error.strerror}"), 127)


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


def _apply(wanted: Sequence[changes.Change]) -> None:
    path = find_running() / "state"

    def all_of_them(state: State) -> State:
        for each in wanted:
            state = each(state)
        return state

    try:
        change(path, all_of_them)
    except OSError as error:
        raise SimulationError(f"{path} can't be changed: {error.strerror}") from error
