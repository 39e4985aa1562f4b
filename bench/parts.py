"""Processor time of the parts of a hub's pages, measured in the hub's process.

`lines` are for the hub's configuration. Requests have to come one after the other: what the hub
does meanwhile for others would be counted, too.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import iscoroutine
from pathlib import Path
from types import coroutine
from typing import Any

from tests.support.paths import ROOT

# The file in the hub's folder with one line for each request.
FILE = "parts"
HEADER = "X-Bench"
# Part -> the function that it is: what it calls is counted, too. JupyterHub's, then ours.
PARTS = {
    "who it is": ("jupyterhub.handlers.base", "BaseHandler.prepare"),
    "the page's template": ("jupyterhub.handlers.base", "BaseHandler.render_template"),
    "our form": ("gpuspawner.hub.spawn_form", "SpawnForm.render"),
    "  rules of the user": ("gpuspawner.hub.spawn_form", "SpawnForm.applicant"),
    "  nodes and leases": ("gpuspawner.choices.open_forms", "OpenForms.recent_view"),
    "  what has changed": ("gpuspawner.choices.open_forms", "OpenForms.visible_state"),
    "  its HTML": ("gpuspawner.choices.form", "render"),
    "    counts": ("gpuspawner.choices.form", "count_items"),
    "      forecasts": ("gpuspawner.hub.spawn_form", "forecast_choice"),
    "    models": ("gpuspawner.choices.form", "model_items"),
    "    image versions": ("gpuspawner.choices.form", "version_items"),
    "  how full the home is": ("gpuspawner.spawner", "GPUSpawner.home_use"),
    "  what is the user's own": ("gpuspawner.choices.form", "page"),
    "our home page": ("gpuspawner.hub.home_page", "HomePage.allowances"),
}
_spent: dict[str, float] = {}


def lines() -> str:
    """Return the lines of a configuration with which a hub measures."""
    return f"import sys\nsys.path.append({str(ROOT)!r})\nfrom bench import parts\nparts.install()\n"


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the requests so far that had `HEADER`: its value, and part -> milliseconds."""
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def install() -> None:
    """Measure each part of each request from now on, in this process."""
    from tornado.web import RequestHandler

    for name, (module, path) in PARTS.items():
        holder: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for each in outer:
            holder = getattr(holder, each)
        setattr(holder, last, _measured(getattr(holder, last), name))
    file = Path(FILE).open("w", buffering=1)  # noqa: SIM115 # for as long as the hub runs
    execute = RequestHandler._execute

    async def measured(self: Any, *args: Any, **kwargs: Any) -> None:
        _spent.clear()
        began = time.process_time()
        await execute(self, *args, **kwargs)
        if what := self.request.headers.get(HEADER):
            of_parts = {name: 1000 * seconds for name, seconds in _spent.items()}
            total = 1000 * (time.process_time() - began)
            file.write(json.dumps({"what": what, "parts": {"all": total, **of_parts}}) + "\n")

    RequestHandler._execute = measured  # type: ignore[method-assign]


def _measured(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function, of whose calls the processor time is added to a part's."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            found = function(*args, **kwargs)
        finally:
            _spend(name, began)
        return _stepped(found, name) if iscoroutine(found) else found

    return call


@coroutine
def _stepped(work: Coroutine[Any, Any, Any], name: str) -> Any:
    """Run a coroutine, of whose steps the processor time is added to a part's."""
    step: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        began = time.thread_time()
        try:
            awaited = step(value)
        except StopIteration as end:
            return end.value
        finally:
            _spend(name, began)
        try:
            value, step = (yield awaited), work.send
        except BaseException as error:  # also a cancel: it is the coroutine's matter
            value, step = error, work.throw


def _spend(name: str, began: float) -> None:
    _spent[name] = _spent.get(name, 0.0) + time.thread_time() - began
