"""What `gpuspawner gpus` prints for people; what it prints for programs is in test_docs."""

from __future__ import annotations

from gpuspawner.gpus.model import GPU, Holder, Node
from gpuspawner.list_gpus import as_text


def test_a_name_cannot_tell_the_administrator_s_terminal_what_to_do() -> None:
    holder = Holder("a\x1b[2J\nGPU 9  free", "s\x9b")
    gpus = [GPU("GPU-0", 0, "A100", state="leased", holder=holder, reason="\x07why")]
    text = as_text(Node("", "570.1", "12.8"), gpus, {})
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert len(text.splitlines()) == 3
    assert "a?[2J?GPU 9  free/s?" in text
