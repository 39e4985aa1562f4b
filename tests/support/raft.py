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

from gpuspawner.backends.swarm.tasks import state_of
from gpuspawner.leases.labels import LABEL_GPUS


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

    # -- the API

    def nodes(self) -> list[Any]:
        resources = [
            {"DiscreteResourceSpec": {"Kind": kind, "Value": n}} for kind, n in self.offered.items()
        ]
        return [
            {
                "ID": "n1",
                "Spec": {"Role": "manager", "Availability": "active"},
                "Status": {"State": "ready"},
                "Description": {
                    "Hostname": "one",
                    "Engine": {"EngineVersion": "26.1.5"},
                    "Resources": {"GenericResources": resources},
                },
            }
        ]

    def configs(self, filters: Any = None) -> list[Any]:
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
        if self.kept_configs.pop(id, None) is None:
            raise NotFound("no such config")

    def inspect_image(self, image: str) -> Any:
        return {"Id": "sha256:1", "RepoDigests": [], "Config": {"Cmd": ["/server"]}}

    def services(self, filters: Any = None) -> list[Any]:
        return copy.deepcopy(list(self.kept.values()))

    def tasks(self, filters: Any = None) -> list[Any]:
        found = self.all_tasks
        for service in (filters or {}).get("service", []):
            self.inspect_service(service)  # as the engine does, which refuses one that is gone
            found = [each for each in found if each["ServiceID"] == service]
        return copy.deepcopy(found)

    def inspect_service(self, id: str) -> Any:
        for service in self.kept.values():
            if id in (service["ID"], service["Spec"]["Name"]):
                return copy.deepcopy(service)
        raise refusal(404, f"service {id} not found")

    def create_service(
        self, task_template: Any, name: str, labels: Any, mode: Any, endpoint_spec: Any
    ) -> Any:
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
        if self.kept.pop(id, None) is None:
            raise refusal(404, f"service {id} not found")
        for task in self.all_tasks:
            if task["ServiceID"] == id:
                task["Stops"] = True

    # -- what it does by itself

    def orchestrate(self) -> None:
        """Make the task of the first service that is to have one and never had any."""
        for service in self.kept.values():
            has_had = service.get("HasHad")
            if service["Spec"]["Mode"]["Replicated"]["Replicas"] and not has_had:
                service["HasHad"] = True
                self.all_tasks.append(
                    {
                        "ID": f"t{next(self.numbers)}",
                        "ServiceID": service["ID"],
                        "Version": {"Index": next(self.numbers)},
                        "Status": {"State": "new"},
                        "Spec": copy.deepcopy(service["Spec"]["TaskTemplate"]),
                    }
                )
                return

    def place(self) -> None:
        """Give the first task that waits its node, if what it reserves is there."""
        for task in self.all_tasks:
            if state_of(task) in ("new", "pending") and not task.get("Stops"):
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
                return

    def finish(self) -> None:
        """Have the first task end whose service is gone."""
        for task in self.all_tasks:
            if task.get("Stops"):
                self.all_tasks.remove(task)
                return

    def _given(self) -> set[str]:
        running = [each for each in self.all_tasks if state_of(each) == "running"]
        return {kind for each in running for kind in self._kinds(each)}

    def _kinds(self, task: Any) -> set[str]:
        wanted = task["Spec"]["Resources"]["Reservations"].get("GenericResources") or []
        return {each["DiscreteResourceSpec"]["Kind"] for each in wanted}

    def running(self) -> list[str]:
        """The GPUs of the containers that run."""
        return [
            uuid
            for task in self.all_tasks
            if state_of(task) == "running"
            for uuid in task["Spec"]["ContainerSpec"]["Labels"][LABEL_GPUS].split(",")
        ]
