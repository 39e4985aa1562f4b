"""What users install: kept for each image version, over the image's, out of a server's way."""

from __future__ import annotations

import json
import shlex

import pytest
import requests

from ..support.hubs import IMAGES_OWN
from ..support.looks import container_of, inside
from ..support.wheels import FROM_TEST, hand_over, wheel

pytestmark = pytest.mark.engine

HOME = "/home/jovyan"
OWN = f"{HOME}/.local/share/gpuspawner/packages/minimal"
SITE = f"{OWN}/lib/python3.11/site-packages"
# Another version to whom looks at it: the name is all by which one is known.
OTHER = "gpuspawner/other:1"
IMAGES = {"minimal": "gpuspawner/minimal:py3.11", "other": OTHER}
CHOICE = {"gpus": 0, "image": "minimal"}
SAYS = "You have installed packages in minimal. This server runs other and doesn't see them"
KEPT = "Kept when this server stops: your home (~)."
PYTHON = "import sys; print(sys.prefix)"

NOTEBOOK = """
import json, sys, jupyter_client
manager = jupyter_client.KernelManager()
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(60)
shown = []
def show(message):
    content = message["content"]
    shown[-1] += content.get("text") or content.get("evalue") or ""
for cell in sys.argv[1:]:
    shown.append("")
    client.execute_interactive(cell, timeout=60, output_hook=show)
manager.shutdown_kernel(now=True)
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def _hub(hubs_of_run, minimal_image, engine):
    made = engine.create_container(IMAGES["minimal"])["Id"]
    changes = ["ENV GPUSPAWNER_IMAGE_VERSION=other"]
    engine.commit(made, *OTHER.split(":"), changes=changes)
    engine.remove_container(made)
    hub = hubs_of_run(IMAGES_OWN, f"c.GPUSpawner.images = {IMAGES!r}", shipped=True)
    yield hub
    hub.stop()
    engine.remove_image(OTHER, force=True)


@pytest.fixture
def hub(idle_host, _hub, engine):
    yield _hub
    _hub.stop_all_servers()
    for volume in engine.volumes()["Volumes"] or []:
        engine.remove_volume(volume["Name"])


# What the image hasn't; what needs something that it has; and what it has, in a newer version.
WHEELS = dict(
    [
        wheel("lesson", "answer = 42"),
        wheel("plots", "import numpy", needs=["numpy>=1"]),
        wheel("course", "import lesson, tqdm", needs=["lesson", "tqdm"]),
        wheel("numpy", "__version__ = '99.0'", "99.0"),
        wheel("tqdm", "__version__ = '99.0'", "99.0"),
        wheel("storms", "raise RuntimeError('broken')", module="tornado"),
    ]
)


def start(hub, engine, image: str = "minimal", **choice) -> None:
    """Start ada's server, with the packages at hand."""
    hub.start_server("ada", {"gpus": 0, "image": image, **choice})
    hand_over(engine, container_of(engine, "ada"), WHEELS)


def terminal(engine, command: str) -> str:
    """Return what a command says in a terminal of ada's, with what is said at its beginning."""
    return inside(engine, "ada", f"bash -lic {shlex.quote(command)} 2>&1")


def notebook(engine, *cells: str) -> list[str]:
    """Return what ada's cells show in a notebook."""
    words = shlex.join(["python", "-c", NOTEBOOK, *cells])
    return json.loads(inside(engine, "ada", f"{words} 2>/dev/null"))


def changed_in_image(engine) -> list[str]:
    """Return what differs in ada's server from the image's own packages."""
    changes = engine.diff(container_of(engine, "ada"))
    return [each["Path"] for each in changes if each["Path"].startswith("/opt/")]


def test_what_is_installed_is_there_in_the_next_server_and_only_what_was_missing(hub, engine):
    start(hub, engine)
    said = notebook(
        engine, f"%pip install {FROM_TEST} lesson", "import lesson; print(lesson.answer)"
    )
    assert said[1] == "42\n"
    terminal(engine, f"pip install {FROM_TEST} plots")
    terminal(engine, f"uv pip install {FROM_TEST} course")
    assert changed_in_image(engine) == []
    hub.stop_server("ada")
    hub.start_server("ada", CHOICE)
    see = "import lesson, plots, course; print(plots.numpy.__version__, course.tqdm.__version__)"
    for said in (terminal(engine, f'python -c "{see}"'), *notebook(engine, see)):
        assert "99.0" not in said
        assert "Error" not in said
    assert inside(engine, "ada", f"cd {SITE}; ls -d *-info").split() == [
        "course-1.0.dist-info",
        "lesson-1.0.dist-info",
        "plots-1.0.dist-info",
    ]
    assert terminal(engine, "pip check").endswith("No broken requirements found.")
    # Programs of the image's as well, which begin with its Python's name.
    assert "42" in terminal(engine, "ipython --no-banner -c 'import lesson; print(lesson.answer)'")


@pytest.mark.thorough
def test_an_upgrade_is_the_users_and_leaves_the_images(hub, engine):
    start(hub, engine)
    ask = "import numpy; print(numpy.__version__)"
    before = inside(engine, "ada", f"python -c '{ask}'")
    assert "uv leaves numpy" in terminal(engine, f"uv pip install {FROM_TEST} --upgrade numpy")
    assert terminal(engine, f"python -c '{ask}'").endswith(f"\n{before}")
    terminal(engine, f"pip install {FROM_TEST} --upgrade numpy")
    seen, said = notebook(engine, ask, "%pip uninstall --yes numpy")
    assert seen == "99.0\n"
    assert inside(engine, "ada", f"/opt/jupyter/bin/python -c '{ask}'") == before
    assert "uninstalled numpy-99.0" in said
    assert terminal(engine, f"python -c '{ask}'").endswith(f"\n{before}")
    assert changed_in_image(engine) == []


@pytest.mark.thorough
def test_another_version_does_not_see_them_and_says_so(hub, engine):
    start(hub, engine)
    assert KEPT in terminal(engine, f"pip install {FROM_TEST} lesson")
    later = terminal(engine, "true")
    assert SAYS not in later
    assert KEPT not in later
    hub.stop_server("ada")
    start(hub, engine, "other")
    first = terminal(engine, "true")
    assert SAYS in first
    assert KEPT in first
    assert "No module named 'lesson'" in terminal(engine, "python -c 'import lesson'")
    (said,) = notebook(engine, "import lesson")
    assert "No module named 'lesson'" in said
    assert "lesson is among your packages of minimal, and this server runs other" in said
    assert facts_for_page(hub) == ("other", ["minimal"])
    # Scripts read what a command says, and nothing more.
    assert inside(engine, "ada", "bash -lc true 2>&1") == ""
    terminal(engine, f"pip install {FROM_TEST} plots")
    assert SAYS not in terminal(engine, "true")
    hub.stop_server("ada")
    hub.start_server("ada", CHOICE)
    assert facts_for_page(hub) == ("minimal", [])
    shown = notebook(
        engine, "import lesson; print(lesson.answer)", "import plots", "import no_such"
    )
    assert shown[0] == "42\n"
    assert "your packages of other" in shown[1]
    assert "your packages" not in shown[2]


def facts_for_page(hub) -> tuple[str, list[str]]:
    """Return what JupyterLab's page is told: the version, and others with packages."""
    session = hub.log_in("ada", (hub.folder / "user-password").read_text().strip())
    page: requests.Response = session.get(f"{hub.url}/user/ada/lab")
    begin = page.text.index('id="jupyter-config-data"')
    begin = page.text.index("{", begin)
    facts = json.JSONDecoder().raw_decode(page.text, begin)[0]["gpuspawner"]
    return facts["version"], facts["unseen"]


@pytest.mark.thorough
def test_no_package_keeps_a_server_from_starting_and_a_notebook_says_which_is_broken(hub, engine):
    start(hub, engine)
    terminal(engine, f"pip install {FROM_TEST} lesson storms")
    hub.stop_server("ada")
    start(hub, engine)
    assert terminal(engine, "python -c 'import tornado'").endswith("RuntimeError: broken")
    said, more = notebook(engine, PYTHON, "1")
    assert said.startswith("/opt/jupyter\n")
    assert "storms, which you have installed, keeps notebooks from starting (RuntimeE" in said
    assert "installed" not in more
    terminal(engine, "pip uninstall --yes storms")
    assert notebook(engine, f"import lesson, tornado; {PYTHON}") == [f"{OWN}\n"]


@pytest.mark.thorough
def test_in_safe_mode_python_runs_from_the_image(hub, engine):
    start(hub, engine)
    terminal(engine, f"pip install {FROM_TEST} lesson")
    hub.stop_server("ada")
    hub.start_server("ada", {**CHOICE, "safe_mode": True})
    seen, said = notebook(engine, PYTHON, "import lesson")
    assert seen == "/opt/jupyter\n"
    assert "No module named 'lesson'" in said
    assert terminal(engine, f"python -c '{PYTHON}'").endswith("\n/opt/jupyter")


@pytest.mark.thorough
def test_where_they_cannot_be_used_python_runs_from_the_image_and_says_why(hub, engine):
    hub.start_server("ada", CHOICE)
    # The home of a rebuilt image, with another Python.
    assert terminal(engine, "command -v python").endswith(f"{OWN}/bin/python")
    lib = f"{OWN}/lib/python3"
    inside(engine, "ada", f"mv {lib}.11 {lib}.10; sed -i s/3.11/3.10/ {OWN}/pyvenv.cfg")
    why = "Your own packages are for python3.10, and this image has python3.11."
    assert_from_image(engine, why)
    # One that can be mended is.
    inside(engine, "ada", f"mv {lib}.10 {lib}.11; sed -i s/3.10/3.11/ {OWN}/pyvenv.cfg")
    inside(engine, "ada", f"rm {OWN}/bin/*; ln -s /usr/bin/python3.99 {OWN}/bin/python")
    assert terminal(engine, f"python -c '{PYTHON}'").endswith(f"\n{OWN}")
    inside(engine, "ada", f"rm -r {OWN}; chmod a-w $(dirname {OWN})")
    assert_from_image(engine, "Your own packages can't be used: Permission denied.")


def assert_from_image(engine, why: str) -> None:
    first, second = notebook(engine, PYTHON, PYTHON)
    assert first.startswith("/opt/jupyter\n")
    assert why in first
    assert second == "/opt/jupyter\n"
    said = terminal(engine, f"python -c '{PYTHON}'")
    assert why in said
    assert said.endswith("\n/opt/jupyter")


@pytest.mark.thorough
def test_a_full_home_has_notebooks_from_the_image(minimal_image):
    client, reference = minimal_image
    full = {HOME: "size=400k,uid=1000,gid=100,mode=755"}
    script = f"""
        dd if=/dev/zero of=$HOME/big bs=1k 2>/dev/null; touch $HOME/.full 2>/dev/null
        export JUPYTER_RUNTIME_DIR=/tmp/runtime
        {shlex.join(["python", "-c", NOTEBOOK, PYTHON])} 2>/dev/null
    """
    written = client.containers.run(
        reference, ["bash", "-c", script], network_mode="none", tmpfs=full, remove=True
    )
    (said,) = json.loads(written)
    assert said.startswith("/opt/jupyter\nYour own packages can't be used: No space left on device")


@pytest.mark.thorough
def test_who_activates_an_environment_of_their_own_has_it_as_ever(minimal_image, engine):
    client, reference = minimal_image
    container = client.containers.run(
        reference, ["sleep", "600"], network_mode="none", detach=True, init=True
    )
    try:
        hand_over(engine, container.id, WHEELS)
        script = f"""
            python -m venv --without-pip ~/mine && . ~/mine/bin/activate
            uv pip install {FROM_TEST} plots
            python -c 'import plots; print(plots.numpy.__version__)'
            deactivate
            uv pip install {FROM_TEST} --python ~/mine/bin/python course
            ls ~/mine/lib/python3.11/site-packages
        """
        said = container.exec_run(["bash", "-lc", script]).output.decode().split()
        assert said[0] == "99.0"
        assert {"numpy", "tqdm", "lesson", "course"} < set(said)
        assert container.exec_run(["ls", SITE]).output.decode().split() == ["gpuspawner_image.pth"]
    finally:
        container.remove(force=True)
