"""Whether users' files are the same on all machines of a Swarm, by writing and reading there.

What a server writes on one machine, one on another has to read, and its owner has to be the same.
So each machine runs a few short services with the servers' image, user and groups, and with the
folder that the files of all users are in: they make a folder there, each writes a file, each reads
those of the others, and all of that is removed.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import docker.errors

from ..backends.docker.errors import UNREACHABLE, explain
from ..backends.swarm.cluster import SwarmNode, parse_nodes
from ..backends.swarm.homes import HomesPlace
from ..backends.swarm.service_spec import Spec, service_spec
from ..backends.swarm.tasks import Task, first, is_terminal, seconds_of, state_of, words_of
from ..leases.labels import LABEL_HUB
from . import homes_agree
from .containers import NO_IMAGE
from .findings import Configuration, Context, Finding
from .homes_agree import Answer
from .machines import remove_leftovers
from .own_volumes import OWN, remove_unused
from .swarm import is_of_swarm
from .trial import HUB

# Where a service has what is tried.
TARGET = "/gpuspawner-doctor"
# How long the services of a step may take, all together: a file server that is away never answers.
STEP_SECONDS = 60.0
# How long Swarm may take to bring what they have printed, and their containers to end.
LOG_SECONDS = END_SECONDS = 10.0
PAUSE_SECONDS = 0.2
# From when on what a doctor has left is that of one that was killed.
STALE_SECONDS = 600
# What of a server's container decides whether it may write.
RIGHTS = ("CapAdd", "CapDrop", "GroupAdd")
ROOT = "0:0"
LABELS = {LABEL_HUB: HUB}
BY_HAND = "write a file in a server on one machine, and read it in one on another"

# Each prints lines of `name=value`, of which the last is `end=`. $1 is a folder in TARGET. Users
# may be able to write there, and at any moment put a link in the place of what is named here. So
# only files are removed, by names of ours, and empty folders; and what is written is new.
_BEGIN = f'cd {TARGET} || exit; echo "type=$(stat -f -c %T . 2>&1)"; '
_STALE = f"-name '.{OWN}*' -mmin +{STALE_SECONDS // 60} -exec"
# As root: makes the folder, unless $2, the one of a user, is there. What another doctor has left
# goes first: its folder, with files whose names begin with the folder's.
PREPARE = (
    f"{_BEGIN} find . -maxdepth 1 -type d {_STALE} sh -c "
    '\'for each; do rm -f "$each/${each##*/}"-*; rmdir "$each"; done\' sh {} + 2>/dev/null; '
    'if [ -n "$2" ] && [ -d "$2" ]; then echo own=; '
    # One machine makes it, and the others find it.
    'elif said=$( (umask 0; mkdir "$1") 2>&1) || [ -d "$1" ]; then echo made=; '
    # An access list of TARGET's may make it narrower; a link may have taken its place by now.
    '(cd -P "$1" && [ -O . ] && [ -z "$(find . ! -name . -prune)" ] && chmod 1777 .) 2>/dev/null; '
    'else echo "refused=$said"; fi; echo end='
)
# As a server's user: writes $3 into a new file $2. Nobody else may read it, so its owner counts.
WRITE = (
    f'{_BEGIN} echo "user=$(id -u)"; '
    f'find "$1" -maxdepth 1 ! -type d {_STALE} rm -f {{}} + 2>/dev/null; umask 077; set -C; '
    'if said=$( (printf %s "$3" >"$1/$2") 2>&1); then echo "owner=$(stat -c %u "$1/$2")"; '
    'else echo "refused=$said"; fi; echo end='
)
# As a server's user: reads the first line of each file of $3 and those after it: it has to be $2.
READ = (
    f'{_BEGIN} cd "$1" && word=$2 && shift 2 && for file; do if [ -e "$file" ]; then '
    'echo "owner-$file=$(stat -c %u "$file")"; said=; [ -L "$file" ] || [ ! -f "$file" ] || '
    'said=$( (IFS= read -r line <"$file"; printf %.100s "$line") 2>&1); '
    '[ "$said" = "$word" ] || echo "refused-$file=$said"; fi; done; echo end='
)
# As either: removes the files $2 and those after it, and the folder $1, if that isn't "".
REMOVE = (
    f'{_BEGIN} folder=$1; shift; said=$(rm -f "$@" 2>&1) || echo "refused=$said"; '
    # Another machine may have removed it by now.
    'if [ -d "$folder" ]; then said=$(rmdir "$folder" 2>&1) || [ ! -d "$folder" ] || '
    'echo "refused=$said"; fi; echo end='
)


def shared_homes(context: Context) -> Iterator[Finding]:
    """Check that what is written on one machine is read on the others, and has its owner."""
    given, client = context.configuration, context.engine
    if given is None or client is None or not is_of_swarm(given):
        return
    places = [HomesPlace(**each) for each in given.spawner["homes"].get("places") or ()]
    nodes = parse_nodes(client.api.nodes()) if places else []
    nodes.sort(key=lambda node: node.name)
    if len(nodes) < 2:
        return
    if context.trial_image is None:
        yield NO_IMAGE
        return
    _remove_stale_services(client.api)
    for place in places:
        if place.untried:
            yield Finding("warning", f"{place.name} isn't tried: {place.untried}", BY_HAND)
            continue
        try:
            image = str(client.api.inspect_image(context.trial_image[1])["Id"])
            trial = _Trial(client.api, given, image, place, lambda: _left(context, nodes))
            yield from trial.findings(nodes)
        except UNREACHABLE as error:
            yield Finding("failure", f"{place.name} can't be tried: {explain(error)}", BY_HAND)


def _left(context: Context, nodes: Sequence[SwarmNode]) -> Mapping[str, Sequence[str]]:
    """Remove doctors' volumes; return the name of each node -> those that are in use there.

    A node without a daemon that can be asked is left out, unless its engine is the hub's.
    """
    found = dict(remove_leftovers(context))
    assert context.engine is not None
    own = (context.engine_info.get("Swarm") or {}).get("NodeID")
    for node in nodes:
        if node.id == own:
            found[node.name] = remove_unused(context.engine.api)
    return found


class _Trial:
    """Tries one place on all machines.

    Args:
        api: a client of a manager's engine.
        given: the configuration.
        image: the id of an image that servers have.
        place: what is tried.
        left: removes doctors' unused volumes; returns node -> those that are in use there.
    """

    def __init__(
        self,
        api: Any,
        given: Configuration,
        image: str,
        place: HomesPlace,
        left: Callable[[], Mapping[str, Sequence[str]]],
    ) -> None:
        self._api = api
        self._create: Mapping[str, Any] = given.plan.get("create") or {}
        self._image = image
        self._place = place
        self._left = left
        self._volume = f"{OWN}{secrets.token_hex(8)}" if place.mount["Type"] == "volume" else ""
        self._name = f".{OWN}{secrets.token_hex(8)}"
        # Where it is written: a folder that is made, or the user's own.
        self._folder = self._name
        # Node -> the file that it writes there. Who sees one can't tell the next one's name.
        self._files: dict[str, str] = {}
        self._services: list[str] = []
        # On which nodes something may have been written, and on which a volume may be.
        self._touched: list[SwarmNode] = []
        self._tried: list[str] = []

    def findings(self, nodes: Sequence[SwarmNode]) -> list[Finding]:
        """Try it on nodes; return what was found, once nothing of it is left."""
        there = [node for node in nodes if node.takes_servers]
        left: list[Finding] = []
        try:
            found = list(self._try(there))
        finally:
            left = list(self._remove())
        found += [
            Finding(
                "note",
                f"{self._place.name} isn't tried on {node.name}, which takes no servers now",
                f"docker node update --availability active {node.name}, then run this again",
            )
            for node in nodes
            if node not in there
        ]
        return [*found, *left]

    def _try(self, nodes: Sequence[SwarmNode]) -> Iterator[Finding]:
        name = self._place.name
        self._touched, self._tried = list(nodes), [node.name for node in nodes]
        prepared = self._run(nodes, PREPARE, [self._name, self._place.own], ROOT)
        for node, answer in prepared.items():
            if answer.problem:
                yield homes_agree.not_run(name, node, answer.problem)
        nodes = [node for node in nodes if not prepared[node.name].problem]
        self._touched = nodes
        if not nodes:
            return
        having = [node for node in nodes if "own" in prepared[node.name].said]
        if having and len(having) < len(nodes):
            yield homes_agree.on_some(name, self._place.own, [node.name for node in having])
            return
        if not having and not any("made" in prepared[node.name].said for node in nodes):
            said = prepared[nodes[0].name].said
            yield homes_agree.refused_to_root(name, self._place.own, said)
            return
        self._folder = self._place.own if having else self._name
        files = {node.name: f"{self._name}-{secrets.token_hex(8)}" for node in nodes}
        self._files = files
        word = secrets.token_hex(8)
        wrote = self._run(nodes, WRITE, lambda node: [self._folder, files[node], word])
        # Who could write nothing can remove nothing, and needn't.
        self._touched = [
            node
            for node in nodes
            if not homes_agree.is_read_only(wrote[node.name])
            and not (having and "refused" in wrote[node.name].said)
        ]
        read = self._run(nodes, READ, [self._folder, word, *files.values()])
        yield from homes_agree.compare(name, files, wrote, read)

    def _remove(self) -> Iterator[Finding]:
        """Remove what was written, and all services; yield what may be left."""
        self._end_services()
        is_made = self._folder == self._name
        made, user = (self._name, ROOT) if is_made else ("", None)
        names = [f"{self._folder}/{file}" for file in self._files.values()]
        try:
            gone = self._run(self._touched, REMOVE, [made, *names], user)
            for node, answer in gone.items():
                if said := answer.problem or answer.said.get("refused"):
                    yield Finding(
                        "warning",
                        f"what was written for this may be left in {self._place.name} on {node}: "
                        f"{said}",
                        f"remove there {', '.join([made] if made else names)}",
                    )
        finally:
            self._end_services()
            left = self._remove_volumes() if self._volume else []
        for node in left:
            words = f"docker volume rm {self._volume}"
            what = f"a volume of this check is left on {node}, which has no daemon to remove it"
            yield Finding("note", what, f"there: {words}")

    def _remove_volumes(self) -> list[str]:
        """Have the volume removed everywhere; return the names of the nodes that may have it."""
        end = time.monotonic() + END_SECONDS
        while True:
            left = self._left()
            # Its container goes a little later than its task ends.
            having = [name for name in self._tried if self._volume in left.get(name, ())]
            if not having or time.monotonic() > end:
                return [*having, *(name for name in self._tried if name not in left)]
            time.sleep(PAUSE_SECONDS)

    # -- Services --------------------------------------------------------------------------------

    def _run(
        self, nodes: Sequence[SwarmNode], script: str, words: Any, user: str | None = None
    ) -> dict[str, Answer]:
        """Run a script on nodes at once; return the name of each -> what it has printed there.

        Args:
            nodes: the nodes.
            script: for a shell.
            words: its arguments, or a function of a node's name that returns them.
            user: whose it runs; None: that of servers.
        """
        made = {}
        for node in nodes:
            own = words(node.name) if callable(words) else words
            spec = self._spec(node, ["sh", "-c", script, "sh", *own], user)
            made[node.name] = self._start(spec)
        ended = self._wait(made.values())
        return {node: self._answer(service, ended.get(service)) for node, service in made.items()}

    def _spec(self, node: SwarmNode, words: list[str], user: str | None) -> Spec:
        host = dict(self._create.get("host_config") or {}) if user is None else {}
        create = {
            "image": self._image,
            "entrypoint": words,
            "user": user or self._create.get("user"),
            # Else an engine would say in another language why something is refused.
            "environment": {"LC_ALL": "C"},
            "host_config": {name: host[name] for name in RIGHTS if host.get(name)},
        }
        spec = service_spec(
            create,
            name=f"{OWN}{secrets.token_hex(8)}",
            labels=LABELS,
            uuids=(),
            kinds={},
            node_id=node.id,
            network="",
            stop_seconds=0,
        )
        template = spec["TaskTemplate"]
        del template["Networks"]
        source = {"Source": self._volume} if self._volume else {}
        mount = {**self._place.mount, **source, "Target": TARGET}
        template["ContainerSpec"]["Mounts"] = [mount]
        # Whatever servers' output goes to: this is read.
        template["LogDriver"] = {"Name": "json-file"}
        return {**spec, "Mode": {"Replicated": {"Replicas": 1}}}

    def _start(self, spec: Spec) -> str:
        made = self._api.create_service(
            spec["TaskTemplate"],
            name=spec["Name"],
            labels=spec["Labels"],
            mode=spec["Mode"],
            endpoint_spec=spec["EndpointSpec"],
        )
        self._services.append(str(made["ID"]))
        return self._services[-1]

    def _wait(self, services: Iterable[str]) -> dict[str, Task]:
        """Return each service's task, once all have ended or that takes too long."""
        wanted, end = set(services), time.monotonic() + STEP_SECONDS
        while True:
            tasks = _tasks_of(self._api, wanted)
            is_over = wanted <= {each for each, task in tasks.items() if is_terminal(task)}
            if is_over or time.monotonic() > end:
                return tasks
            time.sleep(PAUSE_SECONDS)

    def _answer(self, service: str, task: Task | None) -> Answer:
        if task is None or not is_terminal(task):
            said = words_of(task) if task else ""
            return Answer(problem=f"it doesn't end within {STEP_SECONDS:g} seconds ({said})")
        if state_of(task) != "complete":
            return Answer(problem=words_of(task) or state_of(task))
        end = time.monotonic() + LOG_SECONDS
        while True:
            text = _printed(self._api, service)
            printed = dict(re.findall(r"^([^=\n]+)=(.*)$", text, re.MULTILINE))
            if "end" in printed:
                return Answer(printed)
            if time.monotonic() > end:
                return Answer(problem=f"it has printed {' '.join(text.split())[:200]!r}")
            time.sleep(PAUSE_SECONDS)

    def _end_services(self) -> None:
        """Remove the services, and wait a while until their containers have ended."""
        services, self._services = self._services, []
        for service in services:
            with suppress(docker.errors.NotFound):
                self._api.remove_service(service)
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end:
            tasks = _tasks_of(self._api, set(services))
            if all(is_terminal(task) for task in tasks.values()):
                return
            time.sleep(PAUSE_SECONDS)


def _tasks_of(api: Any, services: set[str]) -> dict[str, Task]:
    """Return service id -> its task, of services that have one; some may be gone."""
    found: dict[str, list[Task]] = {}
    for task in api.tasks():
        if (service := str(task.get("ServiceID"))) in services:
            found.setdefault(service, []).append(task)
    return {service: task for service, own in found.items() if (task := first(own))}


def _printed(api: Any, service: str) -> str:
    output = api.service_logs(service, stdout=True, stderr=True)
    parts = [output] if isinstance(output, bytes) else list(output)
    return b"".join(parts).decode("utf-8", "replace")


def _remove_stale_services(api: Any) -> None:
    """Remove the services of doctors that were killed."""
    for each in api.services(filters={"label": [f"{LABEL_HUB}={HUB}"]}):
        made = seconds_of(each.get("CreatedAt"))
        if made is not None and time.time() - made > STALE_SECONDS:
            with suppress(docker.errors.APIError):  # another doctor does it
                api.remove_service(each["ID"])
