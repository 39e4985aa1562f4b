"""The spawn page and the progress page in a real browser: live, and without the script."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ..support.browsers import log_in
from ..support.hubs import WAITING, with_groups

pytestmark = [pytest.mark.engine, pytest.mark.browser]

USUAL = (
    WAITING,
    "c.GPUSpawner.poll_interval = 1",
    "c.GPUSpawner.hour_limit = 8",
    "c.GPUSpawner.default_hours = 2",
    "c.JupyterHub.concurrent_spawn_limit = 0",
    "c.JupyterHub.tornado_settings = {'slow_spawn_timeout': 1}",
    'c.GPUSpawner.images = {"minimal": {"image": "gpuspawner/minimal:py3.11", "title": "Plain"},'
    ' "new": {"image": "gpuspawner/minimal:py3.11", "title": "New",'
    ' "cuda": "13.2", "min_driver": "999"}}',
)


FAILS = ["bash", "-c", "sleep 4; echo 1st; echo '<b>disk</b> full'; exit 3"]
OUR_PAGES = (
    "from gpuspawner.pages import TEMPLATES",
    "c.JupyterHub.template_paths = [TEMPLATES]",
)


LINES = (*USUAL, *OUR_PAGES, with_groups({"failing": {"cmd": FAILS}}))


@pytest.fixture
def hub(module_hub):
    """In these tests the hub is the one with these lines."""
    return module_hub


def sentence(page):
    return page.get_by_role("status")


def says(page, words):
    page.get_by_role("status").filter(has_text=words).wait_for()


def press(page, group, name):
    page.get_by_role("group", name=group).get_by_role("radio", name=name, exact=True).check()


def test_the_line_follows_the_choice_and_the_machine_and_nothing_picked_is_lost(hub, page, picture):
    log_in(page, hub, "ada")
    says(page, "Starts now, with 1 GPU.")
    press(page, "GPUs", "2")
    says(page, "Starts now, with 2 GPUs.")
    press(page, "GPUs", "none")
    says(page, "Starts now, without GPUs.")
    press(page, "GPUs", "2")
    press(page, "For how long", "4 hours")
    page.evaluate("window.same = document.querySelector('[name=hours]:checked')")
    picture(page, "all-free")
    hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
    says(page, "Too few GPUs are free. You would be next in line, about")
    page.get_by_role("button", name="Join the queue").wait_for()
    hub.spawn("eve", {"gpus": 2, "image": "minimal"})
    says(page, "You would be 2nd in line")
    picture(page, "taken")
    assert "ben" not in page.content()
    assert page.evaluate("window.same === document.activeElement && window.same.checked")
    hub.stop_server("eve")
    hub.stop_server("ben")
    says(page, "Starts now, with 2 GPUs.")
    page.get_by_role("button", name="Start", exact=True).wait_for()
    assert page.evaluate("window.same === document.activeElement && window.same.checked")
    page.get_by_text("1 more version, which can't have GPUs here").click()
    press(page, "Image", "New")
    says(page, "Image New needs driver 999")
    page.get_by_role("radio", name="New", exact=True).wait_for()  # it stays unfolded
    picture(page, "refused")


@pytest.mark.thorough
def test_what_is_taken_away_while_the_page_is_open_is_told_and_comes_back(hub, page, idle_host):
    log_in(page, hub, "ada")
    says(page, "Starts now, with 1 GPU.")
    press(page, "GPUs", "3")
    says(page, "Starts now, with 3 GPUs.")
    before = idle_host.read()
    idle_host.change(lambda state: replace(state, fault="unknown"))
    page.get_by_text("Servers without GPUs can be started.").wait_for()
    says(page, "Starts now, without GPUs.")
    idle_host.write(before)
    page.get_by_role("group", name="GPUs").wait_for()
    page.get_by_text("Servers without GPUs can be started.").wait_for(state="detached")


def test_hostile_names_are_text_in_the_browser(make_hub, page):
    hostile = '<img src=x onerror="window.hurt=1">%s</script><script>window.hurt=1</script>'
    here = "gpuspawner/minimal:py3.11"
    images = {"minimal": here, hostile: {"image": here, "title": hostile, "min_driver": "999"}}
    hub = make_hub(
        *USUAL,
        *OUR_PAGES,
        f"c.GPUSpawner.images = {images!r}",
        "c.JupyterHub.named_server_limit_per_user = 3",
    )
    log_in(page, hub, "a<b>{0}")
    says(page, "Starts now, with 1 GPU.")
    page.get_by_text("1 more version").click()
    page.get_by_label(hostile).check()
    says(page, "needs driver 999")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(f"Error: Image {hostile} needs driver 999").wait_for()
    assert page.evaluate("window.hurt") is None


def test_who_waits_reads_the_place_and_leaves_the_queue_to_the_same_choice(hub, page, picture):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    press(page, "GPUs", "3")
    press(page, "For how long", "4 hours")
    says(page, "All GPUs are taken. You would be next in line, about")
    picture(page, "all-taken")
    page.get_by_role("button", name="Join the queue").click()
    page.wait_for_url("**/spawn-pending/ada**")
    page.get_by_role("heading", name="You are waiting for GPUs").wait_for()
    says(page, "You are next in line for 3 GPUs. Your turn is expected about")
    assert page.title() == "1st in the queue"
    page.get_by_text("You asked for 3 GPUs, image Plain, 4 hours.").wait_for()
    page.get_by_text("You may close this page: you keep your place").wait_for()
    assert hub.spawn("eve", {"gpus": 2, "image": "minimal"}).status_code == 202
    says(page, "You are next in line for 3 GPUs; 1 other waits after you.")
    picture(page, "waiting")
    page.get_by_role("button", name="Leave the queue").click()
    page.wait_for_url("**/hub/home")
    assert hub.server("ada").get("pending") is None
    page.goto(f"{hub.url}/hub/spawn/ada")
    assert page.get_by_role("radio", name="3", exact=True).is_checked()
    assert page.get_by_role("radio", name="4 hours").is_checked()


def test_who_waits_changes_the_choice_and_keeps_the_place(hub, page, picture):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    press(page, "GPUs", "3")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line for 3 GPUs")
    hub.spawn("eve", {"gpus": 2, "image": "minimal"})
    says(page, "1 other waits after you.")
    page.get_by_role("button", name="Change the choice").click()
    page.wait_for_url("**/hub/spawn/ada")
    page.get_by_text("Your place in the queue is kept until").wait_for()
    press(page, "GPUs", "2")
    says(page, "You would be next in line")
    picture(page, "changing")
    page.get_by_role("button", name="Join the queue (1st)").click()
    says(page, "You are next in line for 2 GPUs; 1 other waits after you.")


def test_who_waits_works_without_a_gpu_meanwhile(hub, page):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line")
    page.get_by_role("link", name="Work without a GPU meanwhile").click()
    page.wait_for_url("**/user/ada/without-gpu/**")
    servers = hub.api("GET", "/users/ada").json()["servers"]
    assert servers["without-gpu"]["user_options"] == {"gpus": 0, "image": "minimal"}
    assert servers[""]["pending"] == "spawn"
    # Who waits in that server has no other one, and gives the place up for it.
    hub.stop_server("ada", "without-gpu")
    page.goto(f"{hub.url}/hub/spawn/ada/without-gpu")
    press(page, "GPUs", "2")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are 2nd of 2 in line")
    page.get_by_role("button", name="Start without a GPU instead").click()
    page.wait_for_url("**/user/ada/without-gpu/**")


@pytest.mark.thorough
def test_who_wants_no_place_in_the_queue_starts_without_a_gpu(hub, page, picture):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    says(page, "All GPUs are taken.")
    assert page.get_by_role("radio", name="1", exact=True).is_checked()
    page.get_by_role("button", name="Join the queue (1st)").wait_for()
    picture(page, "default-taken")
    page.get_by_role("button", name="Start without a GPU now").click()
    page.wait_for_url("**/user/ada/")
    assert hub.api("GET", "/users/ada").json()["servers"][""]["user_options"]["gpus"] == 0


def test_who_is_served_lands_in_the_server(hub, page):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    press(page, "GPUs", "1")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line for 1 GPU.")
    hub.stop_server("ben")
    page.wait_for_url("**/user/ada/")


@pytest.mark.thorough
def test_a_restarted_hub_leads_those_who_waited_to_the_form_which_says_so(hub, page):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    press(page, "GPUs", "2")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line for 2 GPUs.")
    hub.kill()
    page.get_by_text("JupyterHub doesn't answer just now.").wait_for()
    hub.start()
    page.wait_for_url("**/hub/spawn/ada")
    page.get_by_text("JupyterHub was restarted while you waited for GPUs").wait_for()
    assert page.get_by_role("radio", name="2", exact=True).is_checked()


@pytest.mark.parametrize("ours", [True, False], ids=["our pages", "the hub's own"])
def test_a_failed_start_shows_the_reason_and_the_last_lines_and_keeps_the_choice(
    request, page, picture, ours
):
    if ours:
        hub = request.getfixturevalue("hub")
        hub.add_to_group("failing", "ada")
    else:
        hub = request.getfixturevalue("make_hub")(*USUAL, f"c.GPUSpawner.cmd = {FAILS!r}")
    log_in(page, hub, "ada")
    press(page, "GPUs", "2")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/spawn-pending/ada**")
    page.get_by_text("<b>disk</b> full").first.wait_for(state="attached")
    assert "The server stopped while starting (exit 3)" in page.content()
    if ours:
        page.get_by_role("heading", name="Your server didn't start").wait_for()
        picture(page, "failed")
    page.reload()
    picture(page, "failed-again" if ours else "failed-again-stock")
    assert page.locator("pre").inner_text().split("\n") == ["1st", "<b>disk</b> full"]
    page.get_by_role("button", name="Back to the choice" if ours else "Relaunch").click()
    page.wait_for_url("**/hub/spawn/ada")
    assert page.get_by_role("radio", name="2", exact=True).is_checked()


def test_a_refused_choice_is_on_the_form_again_to_be_mended(hub, page):
    log_in(page, hub, "ada")
    page.get_by_text("1 more version").click()
    press(page, "Image", "New")
    press(page, "GPUs", "2")
    says(page, "Image New needs driver 999")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Error: Image New needs driver 999").wait_for()
    says(page, "Image New needs driver 999")
    assert page.get_by_role("radio", name="New").is_checked()


@pytest.mark.thorough
def test_without_the_script_the_form_and_the_progress_page_work(hub, browser, page, picture):
    hub.start_server("ben", {"gpus": 3, "hours": 1, "image": "minimal"})
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    log_in(page, hub, "ada")
    press(page, "GPUs", "2")
    picture(page, "no-script")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/spawn-pending/ada**")
    page.get_by_text("You are next in line for 2 GPUs.").wait_for()
    assert page.title() == "1st in the queue"
    page.get_by_text("You asked for 2 GPUs, image Plain, 2 hours.").wait_for()
    page.get_by_role("link", name="Work without a GPU meanwhile").wait_for()
    hub.stop_server("ben")
    page.wait_for_url("**/user/ada/")
    context.close()


@pytest.mark.thorough
def test_a_named_server_leaves_the_queue_and_the_others_stay(hub, page):
    hub.start_server("ada", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    page.goto(f"{hub.url}/hub/spawn/ada/second")
    press(page, "GPUs", "2")
    says(page, "All GPUs are taken. You would be next in line, about")
    page.get_by_role("button", name="Join the queue").click()
    page.wait_for_url("**/spawn-pending/ada/second**")
    page.get_by_role("button", name="Leave the queue").click()
    page.wait_for_url("**/hub/home")
    assert list(hub.api("GET", "/users/ada").json()["servers"]) == [""]
    assert hub.ready("ada")


@pytest.mark.thorough
def test_the_home_page_follows_its_servers_and_ends_and_deletes_them(hub, page):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    hub.start_server("ada", {"gpus": 0, "image": "minimal"})
    hub.spawn("ada", {"gpus": 1, "image": "minimal"}, "my-2nd")
    log_in(page, hub, "ada")
    page.goto(f"{hub.url}/hub/home")
    card = page.get_by_role("region", name="my-2nd")
    card.get_by_text("waiting for GPUs").wait_for()
    hub.stop_server("ben")
    card.get_by_text("running").wait_for()
    card.get_by_role("button", name="Stop").click()
    card.get_by_text("not running").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    card.get_by_role("button", name="Delete").click()
    card.wait_for(state="detached")
    assert list(hub.api("GET", "/users/ada").json()["servers"]) == [""]
    page.get_by_label("One more server, with a name").fill("my-3rd")
    page.get_by_role("button", name="Choose and start").last.click()
    page.wait_for_url("**/hub/spawn/ada/my-3rd")
    page.get_by_role("group", name="GPUs").wait_for()
