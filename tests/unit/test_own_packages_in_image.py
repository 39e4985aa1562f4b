"""The parts of users' own packages in an image that decide something: names, variables, words."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"
ENVIRONMENT = Path("/home/jovyan/.local/share/gpuspawner/packages/minimal")
BEFORE = {"PATH": "/opt/jupyter/bin:/usr/bin", "VIRTUAL_ENV": "/opt/jupyter", "LANG": "C.UTF-8"}


@pytest.fixture
def load(monkeypatch):
    """Import a module of the image's, as its Python does."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda name="": importlib.import_module(f"gpuspawner_packages{name}")
    for name in [name for name in sys.modules if name.startswith("gpuspawner_packages")]:
        del sys.modules[name]


def test_programs_find_the_users_packages_first_and_the_images_beside_them(load) -> None:
    found = load().variables(BEFORE, ENVIRONMENT)
    shown = f"{ENVIRONMENT}/bin:/usr/local/lib/own-packages/bin:/opt/jupyter/bin:/usr/bin"
    assert found == {
        "PATH": shown,
        "VIRTUAL_ENV": str(ENVIRONMENT),
        "LANG": "C.UTF-8",
        "GPUSPAWNER_PACKAGES": str(ENVIRONMENT),
        "JUPYTER_PATH": "/opt/jupyter/share/jupyter",
        "JUPYTER_CONFIG_PATH": "/opt/jupyter/etc/jupyter",
    }
    # A terminal in a terminal, and a notebook that has to run from the image.
    assert load().variables(found, ENVIRONMENT) == found
    assert load().variables(found, None) == BEFORE
    assert load().variables({**found, "JUPYTER_PATH": "/mine"}, None)["JUPYTER_PATH"] == "/mine"


@pytest.mark.parametrize("version", ["minimal", "pytorch-2.15-devel", "v1+lab", "图像"])
def test_a_version_is_the_name_of_a_folder(load, version: str) -> None:
    assert load().image_version({"GPUSPAWNER_IMAGE_VERSION": version}) == version


@pytest.mark.parametrize("version", ["", ".", "..", "../lab", "a/b", ".hidden", "a b", "a\n"])
def test_what_is_no_name_of_a_folder_is_refused(load, version: str) -> None:
    with pytest.raises(load().Unusable, match="GPUSPAWNER_IMAGE_VERSION"):
        load().image_version({"GPUSPAWNER_IMAGE_VERSION": version})


def test_a_home_without_packages_or_that_is_gone_has_none_elsewhere(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load().unseen({"GPUSPAWNER_IMAGE_VERSION": "minimal"}) == []
    folder = tmp_path / ".local/share/gpuspawner/packages"
    for version in ("new", "lab", "empty"):
        (folder / version / "lib/python3.11/site-packages").mkdir(parents=True)
    (folder / "lab/lib/python3.11/site-packages/lesson-1.0.dist-info").mkdir()
    (folder / ".lock").touch()
    for version, found in (("new", ["lab"]), ("lab", []), ("minimal", ["lab"])):
        assert load().unseen({"GPUSPAWNER_IMAGE_VERSION": version}) == found
    assert load().unseen({"GPUSPAWNER_IMAGE_VERSION": "new", "GPUSPAWNER_SAFE_MODE": "1"}) == []


@pytest.mark.parametrize(
    ("words", "is_told"),
    [
        ("lesson", True),
        ("-U numpy==2", True),
        ("--prerelease allow lesson", True),
        ("--python 3.12 lesson", False),
        ("-p ~/mine lesson", False),
        ("--target=lib lesson", False),
        ("lesson --system", False),
    ],
)
def test_uv_is_told_what_the_image_has_where_it_installs_over_it(load, words, is_told) -> None:
    environ: dict[str, str] = {"UV_OVERRIDE": "mine.txt"}
    load(".uv").begin_install(environ, words.split())
    told = "mine.txt /usr/local/lib/own-packages/uv-overrides.txt" if is_told else "mine.txt"
    assert environ == {"UV_OVERRIDE": told}


def test_every_sentence_is_in_both_languages_with_the_same_values(load, monkeypatch) -> None:
    words = load(".words")
    sentences = {name: text for name, text in vars(words).items() if name.isupper()}
    chinese = sentences.pop("CHINESE")
    assert set(chinese) == set(sentences.values())
    for english, translated in chinese.items():
        values = re.findall(r"{\w+}", english)
        assert sorted(set(re.findall(r"{\w+}", translated))) == sorted(set(values))
    for locale, separator in (("C.UTF-8", ", "), ("zh_CN.UTF-8", "、"), ("de_DE.UTF-8", ", ")):
        monkeypatch.delenv("LANGUAGE", raising=False)
        monkeypatch.setenv("LC_ALL", locale)
        assert words.listed(["a", "b"]) == f"a{separator}b"


GONE = "Gone then: everything else,"
PART = f"{GONE} also the rest of your home and what pip installs."
ALL = f"{GONE} such as /tmp and what apt installs."
NOTHING = "Nothing is kept when this server stops. Download what you need before."


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (None, None),
        ("", NOTHING),
        ("/home/jovyan", f"Kept when this server stops: your home (~). {ALL}"),
        ("/home", f"Kept when this server stops: your home (~). {ALL}"),
        ("/home/jovyan:/home/jovyan/course:/data/", f"Kept when this server stops: your home (~), "
         f"/data. {ALL}"),
        ("/home/jovyan/work", f"Kept when this server stops: ~/work. {PART}"),
        ("/data:/home/jovyan/work:/home/jovyan/work/x", "Kept when this server stops: /data, "
         f"~/work. {PART}"),
        ("/home/jovyan-2", f"Kept when this server stops: /home/jovyan-2. {PART}"),
    ],
)  # fmt: skip
def test_the_first_terminal_says_what_is_kept_and_later_ones_nothing(
    load, tmp_path, monkeypatch, folders, said
) -> None:
    module = load(".kept")
    monkeypatch.setattr(module, "SAID", tmp_path / "said")
    environ = {"HOME": "/home/jovyan"} | ({} if folders is None else {"GPUSPAWNER_KEPT": folders})
    assert module.once(environ) == (said or "")
    assert module.once(environ) == ""
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    (tmp_path / "said").unlink(missing_ok=True)
    chinese = module.once(environ)
    assert bool(chinese) == bool(said)
    assert not re.search("[a-z]{5}", chinese.replace("jovyan", ""))
    monkeypatch.setattr(module, "SAID", tmp_path / "nowhere" / "said")
    assert module.once(environ) == ""
