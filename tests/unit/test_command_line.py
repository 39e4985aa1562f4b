"""The words after `gpuspawner`."""

from __future__ import annotations

import pytest

from gpuspawner.__main__ import SUBCOMMANDS, main


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_says_how_it_is_called(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"gpuspawner {name}" in capsys.readouterr().out
