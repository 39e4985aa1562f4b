"""The handbook and the READMEs: each snippet works, and what they name is what there is."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import docker
import pytest
from dockerspawner import DockerSpawner
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from ltiauthenticator.lti13.auth import LTI13Authenticator
from nativeauthenticator import NativeAuthenticator
from oauthenticator.github import GitHubOAuthenticator
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from docs import generate
from gpuspawner.__main__ import SUBCOMMANDS
from gpuspawner.backends.docker import health_marks, set_aside
from gpuspawner.choices.options import Choice
from gpuspawner.doctor.command import entry
from gpuspawner.doctor.findings import Finding
from gpuspawner.gpus import model
from gpuspawner.gpus.model import GPU, Node
from gpuspawner.images.catalogue import ImageVersion
from gpuspawner.leases import audit_log, labels
from gpuspawner.list_gpus import as_json
from gpuspawner.spawner import GPUSpawner
from gpuspawner.swarm_spawner import GPUSwarmSpawner

from ..support.paths import ROOT

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
HANDBOOK = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", *HANDBOOK]
LONGEST_README = 160

# What each class of a configuration is. A class that isn't here comes with a package that the tests
# don't have.
CLASSES = {
    "Authenticator": Authenticator,
    "GitHubOAuthenticator": GitHubOAuthenticator,
    "LTI13Authenticator": LTI13Authenticator,
    "NativeAuthenticator": NativeAuthenticator,
    "DockerSpawner": GPUSpawner,
    "GPUSpawner": GPUSpawner,
    "GPUSwarmSpawner": GPUSwarmSpawner,
    "JupyterHub": JupyterHub,
    "Spawner": GPUSpawner,
}
# Programs of others that the pages call.
OTHERS = {
    "curl",
    "docker",
    "du",
    "echo",
    "git",
    "jupyterhub",
    "nvidia-ctk",
    "pip",
    "python",
    "rm",
    "systemctl",
}
# What a reader puts their own in place of, and what is put there here.
PLACEHOLDERS = {"sha256:…": f"sha256:{'0' * 64}"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page.

    Args:
        mark: the comment right above it: what isn't checked and why; "" where all of it is.
    """

    page: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(*languages: str) -> list[Snippet]:
    """Return the blocks of all pages in some languages; without any, of every language."""
    found = [snippet for page in PAGES for snippet in _snippets(page)]
    return [each for each in found if not languages or each.language in languages]


def _snippets(page: Path) -> Iterator[Snippet]:
    lines = page.read_text().splitlines()
    opened = None
    for number, line in enumerate(lines):
        fence = re.fullmatch(r"( *)```(.*)", line)
        if not fence:
            continue
        if opened is None:
            opened = number
            continue
        first = re.fullmatch(r"( *)```(.*)", lines[opened])
        assert first
        if not first[2].startswith("{"):  # a directive of Sphinx's
            above = re.fullmatch(r" *<!-- (.*) -->", lines[opened - 1])
            text = "\n".join(each[len(first[1]) :] for each in lines[opened + 1 : number])
            yield Snippet(page, opened + 1, first[2], above[1] if above else "", text + "\n")
        opened = None
    assert opened is None, f"{page}: a block isn't closed"


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def table(name: str, head: str) -> dict[str, list[str]]:
    """Return first cell -> other cells of the table of a page that begins with a head."""
    text = (ROOT / "docs" / name).read_text()
    (lines,) = re.findall(rf"^\| {re.escape(head)} \|.*\n\| --- .*\n((?:\|.*\n?)+)", text, re.M)
    rows = [line.strip("| ").split(" | ") for line in lines.splitlines()]
    return {name: row[1:] for row in rows for name in re.findall(r"`([^`]+)`", row[0].strip())}


# ---- snippets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", snippets(), ids=str)
def test_a_snippet_is_checked_or_says_why_not(snippet: Snippet) -> None:
    assert snippet.language in {"python", "shell", "json", "text"}
    if snippet.language == "text":
        assert re.match(r"not run: \S+ \S+", snippet.mark)
    elif snippet.mark:
        assert snippet.language == "python"
        assert re.match(r"values not checked: \S+ \S+", snippet.mark)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_fenced_so_that_it_is_checked(page: Path) -> None:
    # A list's text is indented by its bullet, at most three.
    assert re.findall(r"\n\n {4,}\S.*", prose(page)) == []


@pytest.fixture
def an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has every network, for `ensure_network`; nothing else is asked of it."""
    network = SimpleNamespace(
        name="gpuspawner",
        attrs={"IPAM": {"Config": [{"Gateway": "172.30.0.1"}]}},
        reload=lambda: None,
    )
    engine = SimpleNamespace(networks=SimpleNamespace(list=lambda names: [network]))
    monkeypatch.setattr(docker, "from_env", lambda **_: engine)
    monkeypatch.delenv("GPUSPAWNER_HUB_IP", raising=False)


def configuration(snippet: Snippet, folder: Path) -> Config:
    """Return what JupyterHub would make of a snippet as its configuration."""
    text = snippet.text
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    (folder / "jupyterhub_config.py").write_text(text)
    return PyFileConfigLoader("jupyterhub_config.py", path=str(folder)).load_config()


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_python_is_a_configuration_that_jupyterhub_takes(
    snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, an_engine: None
) -> None:
    # With the repository's files beside it, and none of its own among them.
    around = tmp_path / "around"
    around.mkdir()
    for path in ROOT.iterdir():
        (around / path.name).symlink_to(path)
    monkeypatch.chdir(around)
    found = configuration(snippet, tmp_path)
    assert found, "it sets nothing"
    for name, section in found.items():
        if name not in CLASSES:
            assert snippet.mark.startswith("values not checked:"), name
            continue
        if snippet.mark and name == "JupyterHub":
            section.pop("authenticator_class")  # of the package that isn't here
        known = CLASSES[name].class_traits(config=True)
        assert sorted(set(section) - set(known)) == []
        take(CLASSES[name], Config({name: section}))


def take(kind: Any, config: Config) -> None:
    """Have a class check the values of its traits, as it does when a hub makes one."""
    if issubclass(kind, DockerSpawner):
        kind(user=SimpleNamespace(name="ada", groups=[]), config=config)
    elif kind is NativeAuthenticator:
        with Session(create_engine("sqlite://")) as database:
            kind(config=config, db=database)
    else:
        kind(config=config)


def commands(snippet: Snippet) -> list[list[str]]:
    """Return the commands of a shell snippet as lists of words, without sudo and folders."""
    found = []
    for line in snippet.text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["sudo"]:
            words = words[1:]
        if words:
            found.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return found


@pytest.mark.parametrize("snippet", snippets("shell"), ids=str)
def test_commands_of_ours_are_there_with_their_options(snippet: Snippet) -> None:
    assert commands(snippet)
    for program, *words in commands(snippet):
        if program == "gpuspawner":
            understood(words)
        elif program == "make":
            assert {word for word in words if "=" not in word} <= targets()
        else:
            assert program in OTHERS


def understood(words: list[str]) -> None:
    """Fail where `gpuspawner` wouldn't understand its arguments."""
    parser = argparse.ArgumentParser(prog="gpuspawner")
    subparsers = parser.add_subparsers(required=True)
    for name, (module, _) in SUBCOMMANDS.items():
        import_module(module).add_arguments(subparsers.add_parser(name))
    parser.parse_args(words)


def targets() -> set[str]:
    """Return what `make` makes."""
    text = (ROOT / "Makefile").read_text()
    return {name for line in re.findall(r"^([a-z][a-z -]*):", text, re.M) for name in line.split()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_that_the_text_names_are_there(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", prose(page))
    for words in (each.split() for each in code):
        if words[0] == "gpuspawner" and words[1:2] not in ([], ["COMMAND"]):
            assert words[1] in SUBCOMMANDS or words[1].startswith("{"), words
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets(), words
    for name, trait in re.findall(r"\bc\.(\w+)\.(\w+)", " ".join(code)):
        if name in CLASSES and trait not in {"NAME", "…"}:
            assert trait in CLASSES[name].class_traits(config=True), trait


@pytest.mark.parametrize("snippet", snippets("json"), ids=str)
def test_json_can_be_parsed(snippet: Snippet) -> None:
    assert json.loads(snippet.text)


def test_calls_of_the_dashboard_and_of_the_hub_are_those_that_there_are() -> None:
    found = [words for each in snippets("shell") for words in commands(each) if words[0] == "curl"]
    paths = {
        (path, method.upper())
        for path, item in generate.description()["paths"].items()
        for method in item
    }
    choices = 0
    for words in found:
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        (url,) = [each for each in words if "API_URL/" in each or "/hub/api/" in each]
        if "API_URL/" in url:
            path = url.replace("$GPUSPAWNER_API_URL", "/api").replace("$JUPYTERHUB_USER", "{user}")
            assert (path, method) in paths
        else:
            assert Choice(**json.loads(words[words.index("-d") + 1])).gpus == 1
            choices += 1
    assert choices == 1
    assert len(found) >= 3


# ---- what the pages name -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "bench" / "README.md", ROOT / "image" / "README.md"]
)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readmes_are_short_and_the_same_in_both_languages() -> None:
    english, chinese = (path.read_text() for path in READMES)
    assert "(README.zh-CN.md)" in english
    assert "(README.md)" in chinese
    for text in (english, chinese):
        assert len(text.splitlines()) <= LONGEST_README
    for same in (r"^## ", r"^- ", r"^\|.*\|$"):
        first, second = (len(re.findall(same, text, re.M)) for text in (english, chinese))
        assert first == second, same
    blocks = [[each.text for each in _snippets(path)] for path in READMES]
    assert blocks[0] == blocks[1]
    linked = [set(re.findall(r"\]\((docs/[^)]+)\)", text)) for text in (english, chinese)]
    pictures = {f"docs/pictures/form{name}.png" for name in ("", ".zh-CN")}
    assert linked[0] - pictures <= linked[1]


def test_every_page_of_the_handbook_is_in_a_table_of_contents() -> None:
    listed = {ROOT / "docs" / "index.md"}
    for page in HANDBOOK:
        for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    assert listed == set(HANDBOOK)


def test_each_generated_part_has_its_place() -> None:
    marks = [mark for page in HANDBOOK for mark in generate.MARK.findall(page.read_text())]
    assert sorted(marks) == sorted(generate.PARTS)
    for mark in marks:
        assert f"<!-- generated: {mark} -->" not in generate.fill(f"<!-- generated: {mark} -->")


def test_every_option_is_in_the_reference_with_its_default_and_a_sentence() -> None:
    ours = set(GPUSpawner.class_traits(config=True)) - set(DockerSpawner.class_traits(config=True))
    text = generate.options()
    listed = re.findall(r"^\| \[`(\w+)`\]\(.*?\) \| `(.*?)` \| (.*) \|$", text, re.M)
    documented = {name: (default, sentence) for name, default, sentence in listed}
    assert ours | {"remove"} == set(documented)
    spawner = GPUSpawner()
    for name, (default, sentence) in documented.items():
        written, real = ast.literal_eval(default), getattr(spawner, name)
        assert {"8G": 8 * 1024**3}.get(str(written), written) == real, name
        assert sentence.endswith("."), name
        assert GPUSpawner.class_traits()[name].help.strip().endswith("."), name
        assert f"autotrait:: gpuspawner.spawner.GPUSpawner.{name}\n" in text


def test_start_timeout_is_what_is_written() -> None:
    text = " ".join((ROOT / "docs" / "reference" / "options.md").read_text().split())
    assert f"`start_timeout` {GPUSpawner().start_timeout} seconds" in text


def test_every_key_of_a_choice_is_in_its_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", generate.choices(), re.M)
    assert [key for key, *_ in rows] == list(Choice.model_fields)
    assert all(text.endswith(".") for row in rows for text in row[1:])


def test_every_field_of_an_image_version_is_in_its_table() -> None:
    assert set(table("reference/images.md", "field")) == set(ImageVersion.model_fields)


def test_every_label_and_log_event_is_in_its_table() -> None:
    there = {value for name, value in vars(labels).items() if name.startswith("LABEL_")}
    assert set(table("reference/labels.md", "label")) == there
    of_volume = set_aside.labels_of(set_aside.FirstVolume("home-ada", "ada"), "http://hub", "lab")
    assert set(table("reference/labels.md", "volume's label")) == set(of_volume)
    of_mark = {set_aside.LABEL, set_aside.LABEL_WHOSE, set_aside.LABEL_SINCE}
    assert set(table("reference/labels.md", "mark's label")) == of_mark
    of_gpu = {v for n, v in vars(health_marks).items() if n.startswith("LABEL")}
    assert set(table("reference/labels.md", "GPU's label")) == of_gpu
    assert set(table("reference/log-events.md", "event")) == set(get_args(audit_log.Event))


def test_every_metric_of_this_process_is_in_the_reference() -> None:
    rows = re.findall(r"^\| `(gpuspawner_\w+)` \|", generate.metrics(), re.M)
    there = generate.registered_metrics()
    assert {name.removesuffix("_total") for name in rows} == there


def test_the_commands_json_is_what_is_written() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    found = as_json(Node(), [GPU("GPU-0", 0, "A100")], {})
    for key in [*found, *found["gpus"][0]]:
        assert f"`{key}`" in page or key == "gpus"
    assert set(table("reference/command-line.md", "state")) == set(get_args(model.GPUState))
    doctor = (ROOT / "docs" / "how-to" / "doctor.md").read_text()
    (example,) = json.loads(re.findall(r"```json\n(.*?)```", doctor, re.DOTALL)[0])
    assert example.keys() == entry("", Finding("ok", "")).keys()
    for key in example:
        assert f"`{key}`" in doctor


def test_every_subcommand_and_call_is_in_the_reference() -> None:
    commands = generate.command_line()
    for name in SUBCOMMANDS:
        assert f"## gpuspawner {name}\n" in commands
    assert "### gpuspawner image build\n" in commands
    calls = generate.api()
    for path, item in generate.description()["paths"].items():
        for method in set(item) - {"parameters"}:
            assert f"### `{method.upper()} {path[1:]}`\n" in calls


def test_the_variables_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reference" / "environment.md").read_text()
    named = set(re.findall(r"^\| `(GPUSPAWNER_\w+)`", text, re.M))
    sources = [*(ROOT / "gpuspawner").rglob("*.py"), ROOT / "jupyterhub_config.py"]
    used = {
        name
        for path in sources
        for name in re.findall(r"\"(GPUSPAWNER_[A-Z_]+)\"", path.read_text())
    }
    assert used - named == set()
