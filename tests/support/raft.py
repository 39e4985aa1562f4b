"""A Docker Swarm as its API has it, in memory: what is before the tests' backend in its place."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import docker
import requests
from docker.errors import APIError, NotFound

from gpuspawner.backends.swarm.tasks import is_terminal, state_of
from gpuspawner.leases.labels import LABEL_GPUS
from gpuspawner.nodes.reports import NodeContainer


def refusal(status: int, words: str) -> APIError:
    """What docker-py raises for an answer of the engine's."""
    response = requests.Response()
    response.status_code = status
    return (NotFound if status == 404 else APIError)(words, response, words)


class RaftInMemory(docker.APIClient):
    """The Swarm as its API has it, with docker-py's methods.

    Args:
        offered: kind -> how many of it its one node offers.
        admits: whether it gives no kind away twice. Else only the hubs see to that.
    """

    def __init__(self, offered: Mapping[str, int], admits: bool = True) -> None:
        # With a version named, docker-py asks no engine for one.
        super().__init__("tcp://127.0.0.1:9", version="1.44")
        self.offered = offered
        self.admits = admits
        self.kept: dict[str, Any] = {}
        self.all_tasks: list[Any] = []
        self.numbers = itertools.count(1)
        self.kept_configs: dict[str, dict[str, str]] = {}
        self.state, self.availability = "ready", "active"
        # Task id -> the GPUs of its container, which runs on the node, whatever Swarm knows of it.
        self.containers: dict[str, list[str]] = {}
        # Without one nothing can be read or changed.
        self.has_leader = True

    # -- the API

    def _check_leader(self) -> None:
        if not self.has_leader:
            raise refusal(500, "rpc error: code = Unknown desc = The swarm does not have a leader")

    def nodes(self) -> list[Any]:
        self._check_leader()
        resources = [
            {"DiscreteResourceSpec": {"Kind": kind, "Value": n}} for kind, n in self.offered.items()
        ]
        return [
            {
                "ID": "n1",
                "Spec": {"Role": "manager", "Availability": self.availability},
                "Status": {"State": self.state},
                "Description": {
                    "Hostname": "one",
                    "Engine": {"EngineVersion": "26.1.5"},
                    "Resources": {"GenericResources": resources},
                },
            }
        ]

    def configs(self, filters: Any = None) -> list[Any]:
        self._check_leader()
        prefixes = (filters or {}).get("name", "")
        prefixes = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
        return [
            {"ID": name, "Spec": {"Name": name, "Labels": dict(labels)}}
            for name, labels in self.kept_configs.items()
            if name.startswith(prefixes)
        ]

    def create_config(self, name: str, data: bytes, labels: Any = None) -> Any:
        assert len(name) <= 64
        assert data
        if name in self.kept_configs:
            raise APIError("conflict", response=SimpleNamespace(status_code=409))  # type: ignore[arg-type]
        self.kept_configs[name] = dict(labels or {})
        return {"ID": name}

    def remove_config(self, id: str) -> None:
        self._check_leader()
        if self.kept_configs.pop(id, None) is None:
            raise NotFound("no such config")

    def inspect_image(self, image: str) -> Any:
        return {"Id": "sha256:1", "RepoDigests": [], "Config": {"Cmd": ["/server"]}}

    def services(self, filters: Any = None) -> list[Any]:
        self._check_leader()
        return copy.deepcopy(list(self.kept.values()))

    def tasks(self, filters: Any = None) -> list[Any]:
        self._check_leader()
        found = self.all_tasks
        for service in (filters or {}).get("service", []):
            self.inspect_service(service)  # as the engine does, which refuses one that is gone
            found = [each for each in found if each["ServiceID"] == service]
        return copy.deepcopy(found)

    def inspect_service(self, id: str) -> Any:
        self._check_leader()
        for service in self.kept.values():
            if id in (service["ID"], service["Spec"]["Name"]):
                return copy.deepcopy(service)
        raise refusal(404, f"service {id} not found")

    def create_service(
        self, task_template: Any, name: str, labels: Any, mode: Any, endpoint_spec: Any
    ) -> Any:
        self._check_leader()
        if any(each["Spec"]["Name"] == name for each in self.kept.values()):
            raise refusal(409, "name conflicts with an existing object")
        spec = {"Name": name, "Labels": labels, "TaskTemplate": task_template, "Mode": mode}
        number = next(self.numbers)
        self.kept[f"s{number}"] = {
            "ID": f"s{number}",
            "CreatedAt": "2030-01-31T12:00:00Z",
            "Version": {"Index": number},
            "Spec": {**copy.deepcopy(spec), "EndpointSpec": endpoint_spec},
        }
        return {"ID": f"s{number}"}

    def update_service(self, id: str, version: int, **spec: Any) -> None:
        self._check_leader()
        service = self.kept.get(id)
        if service is None:
            raise refusal(404, f"service {id} not found")
        if service["Version"]["Index"] != version:
            raise refusal(500, "rpc error: code = Unknown desc = update out of sequence")
        service["Version"]["Index"] = next(self.numbers)
        service["Spec"] = copy.deepcopy(
            {
                "Name": spec["name"],
                "Labels": spec["labels"],
                "TaskTemplate": spec["task_template"],
                "Mode": spec["mode"],
                "EndpointSpec": spec["endpoint_spec"],
            }
        )

    def remove_service(self, id: str) -> None:
        self._check_leader()
        if self.kept.pop(id, None) is None:
            raise refusal(404, f"service {id} not found")
        for task in self.all_tasks:
            if task["ServiceID"] == id:
                task["DesiredState"] = "remove"

    # -- what it does by itself

    def orchestrate(self) -> None:
        """Make the task of the first service that is to have one and never had any."""
        for service in self.kept.values():
            has_had = service.get("HasHad")
            if service["Spec"]["Mode"]["Replicated"]["Replicas"] and not has_had:
                self._make_task(service)
                return

    def _make_task(self, service: Any) -> None:
        service["HasHad"] = True
        number = next(self.numbers)
        self.all_tasks.append(
            {
                "ID": f"t{number}",
                "ServiceID": service["ID"],
                "CreatedAt": f"2030-01-31T12:00:00.{number:06}Z",
                "Version": {"Index": next(self.numbers)},
                "DesiredState": "running",
                "Status": {"State": "new"},
                "Spec": copy.deepcopy(service["Spec"]["TaskTemplate"]),
            }
        )

    def place(self) -> None:
        """Give the first task that waits its node, if what it reserves is there."""
        for task in self.all_tasks:
            if state_of(task) in ("new", "pending") and not _is_given_up(task):
                if any(_is_given_up(each) for each in self._siblings(task)):
                    continue  # it starts once the one that it is in place of has ended
                if self.state != "ready" or self.availability != "active":
                    said = "no suitable node (1 node not available for new tasks)"
                    task["Status"] = {"State": "pending", "Err": said}
                    continue
                if self.admits and not self._kinds(task).isdisjoint(self._given()):
                    said = "no suitable node (insufficient resources on 1 node)"
                    task["Status"] = {"State": "pending", "Err": said}
                    continue
                task["Status"] = {"State": "running"}
                task["NodeID"] = "n1"
                networks = [each["Target"] for each in task["Spec"]["Networks"]]
                task["NetworksAttachments"] = [
                    {"Network": {"Spec": {"Name": name}}, "Addresses": ["127.0.0.1/24"]}
                    for name in networks
                ]
                found = task["Spec"]["ContainerSpec"]["Labels"].get(LABEL_GPUS, "")
                self.containers[task["ID"]] = [each for each in found.split(",") if each]
                return

    def _siblings(self, task: Any) -> list[Any]:
        """The other tasks of its service that have containers."""
        return [
            each
            for each in self.all_tasks
            if each is not task
            and each["ServiceID"] == task["ServiceID"]
            and each["ID"] in self.containers
        ]

    def finish(self) -> None:
        """Have the first container end that isn't wanted any more, where its node is reached."""
        if self.state != "ready":
            return
        known = {each["ID"] for each in self.all_tasks}
        for forgotten in self.containers.keys() - known:
            del self.containers[forgotten]
            return
        for task in self.all_tasks:
            if _is_given_up(task) and (task["ID"] in self.containers or not is_terminal(task)):
                self.containers.pop(task["ID"], None)
                if task["ServiceID"] not in self.kept:
                    self.all_tasks.remove(task)
                elif not is_terminal(task):
                    task["Status"] = {"State": "shutdown", "ContainerStatus": {"ExitCode": 143}}
                return

    def _given(self) -> set[str]:
        # As Swarm's scheduler, which doesn't wait for the end of what it has told to end.
        running = [
            each
            for each in self.all_tasks
            if state_of(each) == "running" and not _is_given_up(each)
        ]
        return {kind for each in running for kind in self._kinds(each)}

    def _kinds(self, task: Any) -> set[str]:
        wanted = task["Spec"]["Resources"]["Reservations"].get("GenericResources") or []
        return {each["DiscreteResourceSpec"]["Kind"] for each in wanted}

    def running(self) -> list[str]:
        """The GPUs of the containers that run, each as often as services have it."""
        of = {each["ID"]: each["ServiceID"] for each in self.all_tasks}
        held = {
            (of.get(task_id, task_id), uuid)
            for task_id, uuids in self.containers.items()
            for uuid in uuids
        }
        return [uuid for _, uuid in held]

    def as_told(self) -> tuple[NodeContainer, ...]:
        """The containers as the node's daemon tells a hub of them."""
        return tuple(
            NodeContainer(f"of-{task_id}", task_id, frozenset(uuids))
            for task_id, uuids in self.containers.items()
            if uuids
        )

    # -- what happens to it, and what administrators do

    def go_down(self) -> None:
        """Have the node away for longer than three heartbeats; its containers go on."""
        self.state = "down"
        self._give_up(self.all_tasks)

    def come_back(self) -> None:
        """Have the node reached again, before it has ended what isn't wanted any more."""
        self.state = "ready"

    def orphan(self) -> None:
        """Give up what is on a node that has been down for a day."""
        for task in self.all_tasks:
            if self.state == "down" and task.get("NodeID") and not is_terminal(task):
                task["Status"] = {"State": "orphaned"}

    def make_available(self, word: str) -> None:
        """Do as `docker node update --availability`: "active", "pause" or "drain"."""
        self.availability = word
        if word == "drain":
            self._give_up(self.all_tasks)

    def force(self, service: Any) -> None:
        """Do as `docker service update --force`: a second task in place of the first."""
        self._give_up([each for each in self.all_tasks if each["ServiceID"] == service["ID"]])
        service["Version"]["Index"] = next(self.numbers)
        if service["Spec"]["Mode"]["Replicated"]["Replicas"]:
            self._make_task(service)

    def scale(self, service: Any, number: int) -> None:
        """Do as `docker service scale`."""
        service["Spec"]["Mode"]["Replicated"]["Replicas"] = number
        service["Version"]["Index"] = next(self.numbers)
        own = [each for each in self.all_tasks if each["ServiceID"] == service["ID"]]
        wanted = [each for each in own if not _is_given_up(each) and not is_terminal(each)]
        self._give_up(wanted[number:])
        for _ in range(number - len(own)):
            self._make_task(service)

    def _give_up(self, tasks: list[Any]) -> None:
        for task in tasks:
            if task.get("DesiredState") != "remove":
                task["DesiredState"] = "shutdown"


def _is_given_up(task: Any) -> bool:
    return task.get("DesiredState") in ("shutdown", "remove")
