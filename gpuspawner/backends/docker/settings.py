"""The traits of spawners whose servers are containers, with their defaults and validation."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from dockerspawner.volumenamingstrategy import default_format_volume_name
from jupyterhub.traitlets import ByteSpecification
from traitlets import Bool, Dict, Enum, List, TraitError, Unicode, default, validate

from ...choices.limits import Limits
from ...courses.model import course_volumes
from ...group_overrides import lower
from ...settings import GPUTraits, checked
from . import volumes
from .engine_client import THREADS
from .injection import WAYS

# The fields of templates that a server's name is in, and those whose values have no dot in them.
PER_SERVER = {"servername", "pseudonym"}
WITHOUT_DOTS = {"username", "safe_username", "servername", "pseudonym", "prefix"}


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

    allowed_devices = List(
        Unicode(),
        help="""Devices beside GPUs that `extra_host_config` may give to every server by
        `device_requests`, by their names, as ["example.com/nic=*"]; `*` stands for any text. All
        others are refused at a start. GPUs and MIG instances are never among them: leases make
        those requests.""",
    ).tag(config=True)

    gpu_injection = Enum(
        WAYS,
        "auto",
        help="""How a server's container is given its GPUs. "cdi": by their names of the Container
        Device Interface, as nvidia.com/gpu=GPU-…, which `nvidia-ctk cdi generate` makes; needs
        Docker Engine 25 or newer. "hook": by NVIDIA's hook, as with `docker run --gpus`. "auto":
        by CDI where the engine, 28.2 or newer, lists all of the server's GPUs, else by the hook.
        With CDI, capabilities and options of `device_requests` in `extra_host_config` have no
        effect.""",
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

    home_size = ByteSpecification(
        None,
        allow_none=True,
        help="""How much a user may keep in `home_volume`, as "50G". None: as much as the disk has.
        From 90 % of it on the user is warned. A new volume takes no more where the Docker Engine
        can see to it: with project quotas of XFS. Elsewhere it is a request, and
        `gpuspawner doctor` says so.""",
    ).tag(config=True, stricter=lower, while_running=True)

    deleted_user_volumes = Enum(
        ("set_aside", "remove", "keep"),
        "set_aside",
        help="""What becomes of a user's own volumes when the user is deleted, and of a named
        server's own when the server is removed. "set_aside": they stay, and a new user of that name
        gets others; `gpuspawner volumes` lists, restores, archives and removes them. "remove": they
        are removed with their files. "keep": a new user of that name has them, with the files.
        """,
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

    def limits(self) -> Limits:
        """Return the limits of a choice of this server's user."""
        return replace(super().limits(), files=self.home_size)

    def volumes_of_user(self) -> list[volumes.Volume]:
        """Return the user's own volumes and the course volumes, by their names in the engine."""
        templates = volumes.user_volumes(
            self.home_volume,
            self.home_path,
            self.earlier_home_volumes,
            {**course_volumes(self.course_catalogue.current().values()), **self.course_volumes},
            sorted(self.groups),
        )
        strict = self._may_look_like_later_ones([each.name for each in templates])
        return [
            replace(
                volume,
                name=volumes.fitting_name(self.format_volume_name(volume.name, self)),
                path=self.format_volume_name(volume.path, self),
                per_server=volume.own and bool(PER_SERVER & volumes.fields_of(volume.name)),
                strict=strict,
            )
            for volume in templates
        ]

    def _may_look_like_later_ones(self, templates: Collection[str]) -> bool:
        """Return whether names of these templates may look as those of later generations do.

        Users' and servers' names have no dot once they are escaped, so that where templates have
        none either, only a later generation's name has one. Images' names have dots.
        """
        return (
            any("." in each or not volumes.fields_of(each) <= WITHOUT_DOTS for each in templates)
            or "." in self.prefix
            or "." in self.escape("a.2")
            or self.format_volume_name is not default_format_volume_name
        )
