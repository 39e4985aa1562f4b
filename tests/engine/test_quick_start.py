"""How the image's servers start with half of the work: what is put off, and that it is there."""

from __future__ import annotations

import pytest

from ..support.hubs import IMAGES_OWN, until

pytestmark = pytest.mark.engine

VARIABLE = "GPUSPAWNER_QUICK_START"


def libraries(engine) -> str:
    """Return which compiled modules the processes of the only container have loaded."""
    (container,) = engine.containers()
    command = ["sh", "-c", "cat /proc/[0-9]*/maps | grep -o '/site-packages/.*[.]so' | sort -u"]
    execution = engine.exec_create(container["Id"], command)
    return engine.exec_start(execution["Id"]).decode()


def test_a_users_server_starts_without_a_hubs_database(make_hub, engine) -> None:
    hub = make_hub(IMAGES_OWN)
    hub.start_server("ada")
    loaded = libraries(engine)
    assert "/zmq/" in loaded
    assert "/sqlalchemy/" not in loaded


def test_an_administrator_can_have_it_start_as_ever(make_hub, engine) -> None:
    hub = make_hub(IMAGES_OWN, f"c.Spawner.environment = {{'{VARIABLE}': '0'}}")
    hub.start_server("ada")
    assert "/sqlalchemy/" in libraries(engine)


def test_a_server_that_cannot_reach_its_hub_says_so_before_it_answers(minimal_image) -> None:
    client, reference = minimal_image
    environment = {
        VARIABLE: "1",
        "JUPYTERHUB_API_TOKEN": "none",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:9/hub/api",
        "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-ada",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:8888/user/ada/",
        "JUPYTERHUB_USER": "ada",
    }
    container = client.containers.run(
        reference, environment=environment, network_mode="none", detach=True
    )
    try:
        until(lambda: b"Failed to connect to my Hub" in container.logs(), "it says so")
        assert b"is running at" not in container.logs()
    finally:
        container.remove(force=True)
