"""Hosts drawn as letters, and requests for their GPUs."""

from __future__ import annotations

from hypothesis import strategies as st

from gpuspawner.gpus.model import GPU, Request

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"

# A host is drawn as one letter for each GPU, in the order of their indexes.
LETTERS: dict[str, tuple[str, str]] = {
    "a": (A100, "free"),
    "t": (T4, "free"),
    "L": (A100, "leased"),
    "F": (A100, "foreign"),
    "M": (A100, "mig"),
    "S": (A100, "unhealthy"),
    "E": (A100, "excluded"),
    "U": (A100, "unknown"),
}


def host(letters: str) -> list[GPU]:
    """The GPUs that letters stand for; "?" is one that calls itself free and tells no UUID."""
    gpus = []
    for index, letter in enumerate(letters):
        if letter == " ":
            continue
        model, state = LETTERS.get(letter, (A100, "free"))
        uuid = None if letter == "?" else f"GPU-{index}"
        gpus.append(GPU(uuid, index, model, state=state))  # type: ignore[arg-type]
    return gpus


requests = st.builds(
    Request,
    st.just("torch"),
    st.integers(0, 6),
    st.sampled_from([None, None, A100, T4]),
    st.sampled_from([None, None, frozenset(), frozenset({A100}), frozenset({A100, T4})]),
)
