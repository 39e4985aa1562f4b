"""The traits of spawners whose servers are containers, with their defaults and validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jupyterhub.traitlets import ByteSpecification
from traitlets import Bool, Dict, TraitError, Unicode, default, validate

from ...settings import GPUTraits, checked
from . import volumes
from .backend import THREADS


class DockerTraits(GPUTraits):
    """The traits of spawners whose servers are containers."""

    shm_size = ByteSpecification(
        "8G",
        help="""Size of /dev/shm, where PyTorch's DataLoader and NCCL exchange data. Docker's 64 MB
        is too little for both. It counts toward `mem_limit`. 0: the engine's default.""",
    ).tag(config=True)

    ulimits = Dict(
        {"memlock": -1, "stack": 64 * 1024**2},
        help="""Limits of a server's processes, -1 for none: NCCL pins memory, and some frameworks
        need a larger stack. Limits in `extra_host_config` take precedence.""",
    ).tag(config=True)

    log_driver = Unicode(
        help="""The engine's log driver for a server's output, as "local", "journald" or "fluentd".
        Empty: the engine's default. A log driver in `extra_host_config` takes precedence.""",
    ).tag(config=True)

    log_options = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""Options of the log driver, as {"tag": "{{.Name}}"}. For json-file, which is the
        default of an engine and doesn't limit its size, `max-size` is 10m and `max-file` 3 unless
        they are set here.""",
    ).tag(config=True)

    home_volume = Unicode(
        help="""Name of each user's own volume, kept across servers and image versions, as
        "home-{username}". Empty: none.""",
    ).tag(config=True)

    home_path = Unicode(
        "/home/jovyan/work",
        help="""Where the user's own volume is mounted in the container. With "/home/jovyan" all of
        the home is kept; a new volume begins with what the image has there.""",
    ).tag(config=True)

    earlier_home_volumes = Dict(
        help="""Users' own volumes of an earlier configuration: name -> path, as
        {"home-{username}": "/home/jovyan/work"}. A user who has one finds it there, beside
        `home_volume`; none is made anew.""",
    ).tag(config=True)

    course_volumes = Dict(
        help="""Volumes that users share: name -> {"path": "/home/jovyan/course", "instructors":
        ["group", …], "readers": ["group", …]}. Members of the first groups may write, those of the
        others read, and nobody else has it. Without "readers" everybody may read.""",
    ).tag(config=True)

    # False in DockerSpawner; here a server's GPUs change from start to start.
    remove = Bool(
        True,
        help="""Remove a server's container when it stops. Where this is False, a stopped container
        holds no GPUs; one that had none is started again, and one that had some is replaced.""",
    ).tag(config=True, while_running=True)

    @default("client_kwargs")
    def _client_kwargs_default(self) -> dict[str, Any]:
        return {"max_pool_size": THREADS}

    @default("name_template")
    def _name_template_default(self) -> str:
        # The engine tells every container the names of its neighbours.
        return "{prefix}-{pseudonym}"

    @validate("home_volume")
    def _check_home_volume(self, proposal: Any) -> Any:
        return checked(volumes.check_home, proposal.value)

    @validate("earlier_home_volumes")
    def _check_earlier_home_volumes(self, proposal: Any) -> Any:
        return checked(volumes.check_earlier, proposal.value)

    @validate("course_volumes")
    def _check_course_volumes(self, proposal: Any) -> Any:
        return checked(volumes.check_courses, proposal.value)

    @validate("ulimits")
    def _check_ulimits(self, proposal: Any) -> Any:
        for name, value in proposal.value.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < -1:
                raise TraitError(f"ulimits[{name!r}] must be a whole number or -1, got {value!r}")
        return proposal.value

    def volumes_of_user(self) -> list[volumes.Volume]:
        """Return the user's own volumes and the course volumes, by their names in the engine."""
        templates = volumes.user_volumes(
            self.home_volume,
            self.home_path,
            self.earlier_home_volumes,
            self.course_volumes,
            sorted(self.groups),
        )
        return [
            replace(
                volume,
                name=volumes.fitting_name(self.format_volume_name(volume.name, self)),
                path=self.format_volume_name(volume.path, self),
            )
            for volume in templates
        ]
