"""Who may know the machines' names, and what everybody else reads in their place.

All that shows a machine goes through here, or through `i18n.lazy_text.MachineText`, by what
`may_know` has decided of who asks. One machine alone is never named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, get_args

from ..i18n.lazy_text import MachineText, lazy_gettext, lazy_ngettext, listed
from .model import GPU, Node

Audience = Literal["administrators", "everybody"]
AUDIENCES: tuple[Audience, ...] = get_args(Audience)
# Who has this scope for all servers is an administrator; for own servers it has "!user=NAME".
ADMINISTRATORS_SCOPE = "delete:servers"
# As many machines are named beside an option of a form; of more their number says enough.
MOST_NAMED = 3


def may_know(audience: str, is_administrator: bool = False) -> bool:
    """Return whether somebody may know the machines' names.

    Args:
        audience: the trait `name_machines`. Anything else than its values is taken for the
            stricter one.
        is_administrator: whether they are one; not so of whom that isn't known.
    """
    return is_administrator or audience == "everybody"


def is_administrator(scopes: Collection[str]) -> bool:
    """Return whether who has these scopes of JupyterHub's is an administrator."""
    return ADMINISTRATORS_SCOPE in scopes


class MachineNames:
    """What the machines of a hub are called, by who reads it.

    The numbers are in no order of the names, and change as machines join or leave.

    Args:
        nodes: all of them.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        there = list(nodes)
        names = sorted({node.name for node in there}, key=_scattered)
        self._with_gpus = len({node.name for node in there if node.gpus})
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._shown = {
            name: MachineText(name, lazy_gettext("machine %(number)s", number=number))
            for name, number in self._numbers.items()
        }

    @property
    def several(self) -> bool:
        """Whether several have GPUs, so that these have to be told apart."""
        return self._with_gpus > 1

    def of(self, node: str) -> str:
        """Return what a GPU's machine is called, for whoever reads it; "" if one alone has GPUs."""
        return self._shown.get(node, "") if self.several else ""

    def known_as(self, node: str, names_machines: bool) -> str:
        """Return what a machine is called, by whether its reader may know its name.

        It is lazy text without the name, or the name.
        """
        shown = self._shown.get(node)
        if shown is None or len(self._numbers) <= 1:
            return ""
        return shown.named if names_machines else shown.unnamed

    def on(self, nodes: Iterable[str]) -> str:
        """Return on how many of them something is: "on 2 machines"; "" if one alone has GPUs.

        Who may know their names reads which ones, if they are few.
        """
        names = sorted({*nodes} & self._numbers.keys())
        if not self.several or not names:
            return ""
        counted = lazy_ngettext("on %(num)s machine", "on %(num)s machines", len(names))
        if len(names) > MOST_NAMED:
            return counted
        return MachineText(lazy_gettext("on %(nodes)s", nodes=listed(names, "and")), counted)

    def gpus(self, gpus: Iterable[GPU]) -> Sequence[GPU]:
        """Return GPUs in an order that tells nothing of their machines' names."""
        return sorted(gpus, key=lambda gpu: self._numbers.get(gpu.node, 0))

    def nodes(self, nodes: Iterable[Node]) -> Sequence[Node]:
        """Return machines in that order."""
        return sorted(nodes, key=lambda node: self._numbers.get(node.name, 0))


def _scattered(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
