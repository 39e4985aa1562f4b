"""What the start of the image's servers puts off, and that it is there when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"
VARIABLE = "GPUSPAWNER_QUICK_START"

# Some modules that say when they run.
MODULES = {
    "plain.py": "print('plain runs'); answer = 42",
    "caller.py": "print('caller runs')\ndef ask(word): return word * 2\nother = 1",
    "pack/__init__.py": "print('pack runs'); from . import inner, other; total = inner.value + 1",
    "pack/inner.py": "print('inner runs'); value = 1\nclass Kind: pass",
    "pack/other.py": "print('other runs'); from pack import inner; size = inner.value",
    "pack/alone.py": "print('alone runs'); name = 'alone'",
    "slow.py": "import time; time.sleep(0.3); answer = 42",
    "broken.py": "print('broken runs'); import there_is_no_such_module",
}
BEGIN = """
import sys
import gpuspawner_start as start
start.DEFERRED.clear()
start.DEFERRED.update({
    "plain": {}, "slow": {}, "broken": {}, "missing": {},
    "caller": {"ask": start.Late},
    "pack": {}, "pack.inner": {"Kind": start.Never},
})
start.ALONE = {"pack.alone"}
sys.meta_path.insert(0, start.Finder())
"""


@pytest.fixture
def say(tmp_path: Path):
    """Run code in a Python of its own, with the modules put off; return the lines it prints."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(code: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + dedent(code)],
            env={"PYTHONPATH": f"{SITE}:{tmp_path}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_module_runs_when_something_is_taken_out_of_it_and_once(say) -> None:
    code = "import plain; print('imported'); print(plain.answer); from plain import answer"
    assert say(code) == ["imported", "plain runs", "42"]
    assert say("from plain import answer; print(answer)") == ["plain runs", "42"]
    assert say("from plain import *; print(answer)") == ["plain runs", "42"]


def test_it_is_the_module_that_was_imported_and_an_ordinary_one_then(say) -> None:
    code = """
        import plain as before
        print(before.answer)
        import plain, types
        print(plain is before, type(plain) is types.ModuleType, type(plain.__loader__).__name__)
    """
    assert say(code) == ["plain runs", "42", "True True SourceFileLoader"]


def test_what_is_only_called_is_looked_up_when_it_is(say) -> None:
    code = """
        from caller import ask
        print('taken')
        print(ask('ha'), ask('ho'))
        from caller import ask
        print(type(ask).__name__)
    """
    assert say(code) == ["taken", "caller runs", "haha hoho", "function"]
    assert say("from caller import ask, other; print(ask('ha'))") == ["caller runs", "haha"]


def test_a_class_without_objects_has_a_stand_in(say) -> None:
    code = """
        from pack.inner import Kind
        print(isinstance(1, int | Kind), isinstance('', int | Kind))
    """
    assert say(code) == ["True False"]


def test_a_package_runs_before_its_modules(say) -> None:
    runs = ["pack runs", "other runs", "inner runs"]
    assert say("from pack import inner; print('taken')") == ["taken"]
    assert say("from pack import inner; print(inner.value)") == [*runs, "1"]
    assert say("import pack; print(pack.total)") == [*runs, "2"]
    # One that isn't listed, whether the package imports it by itself or not.
    assert say("import pack.other; print(pack.other.size)") == [*runs, "1"]
    assert say("import pack.other as a, sys; print(a is sys.modules['pack'].other)")[-1] == "True"
    code = "import pack.other; print(type(pack.other.__spec__.loader).__name__)"
    assert say(code)[-1] == "SourceFileLoader"


def test_only_what_is_named_may_run_before_its_package(say) -> None:
    assert say("from pack.alone import name; print(name)") == ["alone runs", "alone"]


def test_asking_whether_it_is_a_package_or_has_warned_runs_nothing(say) -> None:
    code = """
        import plain, pack
        print(hasattr(plain, '__path__'), len(pack.__path__), hasattr(pack, '__warningregistry__'))
    """
    assert say(code) == ["False 1 False"]


def test_what_is_not_installed_stays_so(say) -> None:
    code = """
        import importlib.util
        print(importlib.util.find_spec('missing'))
        try:
            import missing
        except ModuleNotFoundError as error:
            print(error)
    """
    assert say(code) == ["None", "No module named 'missing'"]


def test_who_takes_something_out_of_a_broken_module_reads_why(say) -> None:
    code = """
        import broken
        for _ in range(2):
            try:
                broken.answer
            except ImportError as error:
                print(error)
    """
    assert say(code) == ["broken runs", "No module named 'there_is_no_such_module'"] * 2


def test_two_threads_get_the_same_module_after_it_has_run(say) -> None:
    code = """
        import slow
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            print(list(pool.map(lambda _: slow.answer, range(4))))
    """
    assert say(code) == ["[42, 42, 42, 42]"]


@pytest.mark.parametrize(
    ("program", "value", "begun"),
    [
        ("jupyterhub-singleuser", "1", True),
        ("jupyter-labhub", "1", True),
        ("jupyterhub-singleuser", "0", False),
        ("jupyterhub-singleuser", "", False),
        ("pip", "1", False),
    ],
)
def test_only_a_server_starts_so_and_only_where_it_is_asked_to(
    tmp_path: Path, program: str, value: str, begun: bool
) -> None:
    script = tmp_path / program
    script.write_text(
        f"""import os, site, sys
site.addsitedir({str(SITE)!r})
start = sys.modules.get("gpuspawner_start")
print(bool(start) and isinstance(sys.meta_path[0], start.Finder), os.environ.get("{VARIABLE}"))
"""
    )
    said = subprocess.run(
        [sys.executable, script], env={VARIABLE: value}, capture_output=True, text=True, check=True
    ).stdout
    # Kernels and terminals inherit what is left.
    assert said.split() == [str(begun), "None" if begun else value or ""][: 2 if value else 1]
