"""The form of some hosts, as it is shown."""

from __future__ import annotations

import time
from typing import Any

from gpuspawner.choices.forecast import Forecast
from gpuspawner.choices.form import page, render
from gpuspawner.choices.home_use import HomeUse
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice, request
from gpuspawner.errors import Refused
from gpuspawner.gpus.allocation import explain_shortage, request_phrase
from gpuspawner.gpus.model import GPU, WHOLE, GPUState, Holder, Node
from gpuspawner.i18n.languages import ENGLISH, Language
from gpuspawner.i18n.lazy_text import lazy_gettext
from gpuspawner.images.catalogue import catalogue
from gpuspawner.leases.ledger import View
from gpuspawner.scheduling.plan import Planner, QueuedRequest

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
DRIVER = "570.133.20"
ONE = catalogue({"torch": "lab/torch"})
TWO = catalogue(
    {
        "torch": {"image": "lab/torch", "title": "PyTorch", "cuda": "12.6", "description": "Nets"},
        "next": {"image": "lab/next", "min_driver": "600"},
    }
)
LIMITS = Limits(TWO, "torch")


def gpu(index: int, model: str = A100, state: GPUState = "free", **more: Any) -> GPU:
    return GPU(f"GPU-{index}", index, model, 40960, state=state, **more)


def host(*gpus: GPU, driver: str | None = DRIVER) -> View:
    return View((Node("", driver, "12.8", gpus),))


FREE = host(gpu(0), gpu(1), gpu(2))
TAKEN = {"state": "leased", "holder": Holder("bob"), "reason": lazy_gettext("taken")}
MIXED = host(gpu(0), gpu(1, **TAKEN), gpu(2, T4))
NO_DRIVER = host(driver=None)


def shown(
    limits: Limits,
    last: Choice,
    view: View | None,
    trouble: str = "",
    notice: str = "",
    picked: bool = False,
    language: Language = ENGLISH,
    safe_mode: bool = False,
    home: HomeUse | None = None,
) -> str:
    """Return the form, with an empty queue before it."""

    def forecast(choice: Choice) -> Forecast:
        seen = view or View()
        try:
            wanted = request(choice, limits, seen.nodes)
        except Refused as error:
            return Forecast("no", choice.gpus or 0, refusal=str(error))
        if not wanted.gpus:
            return Forecast("now")
        part = "" if wanted.kind == WHOLE else request_phrase(wanted)
        waiting = QueuedRequest(Holder("you"), wanted, 0)
        turn = Planner().plan([waiting], seen.gpus, seen.leases, time.time())[0]
        if turn.gpus or not limits.waits:
            refusal = "" if turn.gpus else explain_shortage(wanted, seen.gpus)
            return Forecast("now" if turn.gpus else "no", wanted.gpus, refusal=refusal, part=part)
        fitting = [gpu for gpu in seen.gpus if wanted.takes(gpu)]
        free = sum(gpu.state == "free" for gpu in fitting)
        taken = all(gpu.state == "leased" for gpu in fitting)
        return Forecast("wait", wanted.gpus, turn, free, taken, wanted.model or "", part)

    form = render(
        limits,
        last,
        view,
        forecast,
        language=language,
        trouble=trouble,
        notice=notice,
        picked=picked,
        safe_mode=safe_mode,
    )
    return form if picked else page(form, home, language)
