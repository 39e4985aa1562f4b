"""The spawn page and the progress page in a real browser: live, and without the script."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone

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


GROUPS = {"failing": {"cmd": FAILS}, "asked": {"check_in_minutes": 0.2}}
LINES = (*USUAL, *OUR_PAGES, with_groups(GROUPS))
# What the browser shows outside of the page: kept, and shown.
KEEP_NOTIFICATIONS = """
  window.Notification = class extends Notification {
    constructor(title, options) {
      super(title, options);
      sessionStorage.told = `${sessionStorage.told ?? ""}${title}: ${options.body}|`;
    }
  };
"""


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


# What is written over something else, or sticks out of its button.
OVERLAPS = """() => {
  const found = [], seen = [];
  for (const press of document.querySelectorAll(".gs-press")) {
    const around = press.getBoundingClientRect();
    const walker = document.createTreeWalker(press, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode());) {
      if (!node.textContent.trim() || node.parentElement.closest(".visually-hidden")) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const { left, right, top, bottom } of range.getClientRects()) {
        const said = node.textContent.trim();
        if (left < around.left || right > around.right) found.push(`${said} sticks out`);
        for (const other of seen) {
          const across = Math.min(right, other.right) - Math.max(left, other.left);
          const down = Math.min(bottom, other.bottom) - Math.max(top, other.top);
          // Lines of text are a little higher than their letters.
          if (across > 1 && down > 4) found.push(`${said} over ${other.said}`);
        }
        seen.push({ left, right, top, bottom, said });
      }
    }
  }
  return [seen.length, found];
}"""


@pytest.mark.parametrize("locale", ["en-GB", pytest.param("zh-CN", marks=pytest.mark.thorough)])
def test_a_time_of_tomorrow_fits_into_its_button(hub, browser, picture, locale):
    hub.start_server("ben", {"gpus": 4, "hours": 8, "image": "minimal"})
    # Where it is nearly midnight now.
    ahead = (23 - datetime.now(timezone.utc).hour + 11) % 24 - 11
    where = f"Etc/GMT{-ahead:+d}" if ahead else "Etc/GMT"
    context = browser.new_context(locale=locale, timezone_id=where)
    context.set_default_timeout(60_000)
    page = context.new_page()
    log_in(page, hub, "ada")
    page.locator("#gpuspawner-fresh time[datetime]").wait_for()
    tomorrow = datetime.now(timezone(timedelta(hours=ahead))) + timedelta(days=1)
    page.locator(".gs-press small", has_text=str(tomorrow.day)).first.wait_for()
    for width in (1100, 375):
        page.set_viewport_size({"width": width, "height": 700})
        picture(page, f"tomorrow-{locale}-{width}")
        texts, found = page.evaluate(OVERLAPS)
        assert texts > 8
        assert found == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


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
def test_who_asks_for_a_later_start_waits_in_the_time_zone_of_their_browser(hub, browser, picture):
    context = browser.new_context(timezone_id="Asia/Shanghai")
    page = context.new_page()
    log_in(page, hub, "ada")
    says(page, "Starts now, with 1 GPU.")
    page.get_by_text("Start later").click()
    tomorrow = datetime.now(timezone(timedelta(hours=8))) + timedelta(days=1)
    page.get_by_label("Not before").fill(f"{tomorrow:%Y-%m-%d}T08:00")
    says(page, "It starts later, as you asked. You would be next in line, about")
    assert page.get_by_role("status").filter(has_text="08:00").count() == 1
    picture(page, "later")
    page.get_by_role("button", name="Join the queue (1st)").click()
    says(page, "It starts later, as you asked. Your turn is expected about")
    says(page, "08:00")
    # Who comes later and is done by then doesn't wait for it.
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    page.get_by_role("button", name="Change the choice").click()
    page.wait_for_url("**/hub/spawn/ada")
    assert page.get_by_label("Not before").input_value() == f"{tomorrow:%Y-%m-%d}T08:00"
    page.get_by_label("Not before").fill("")
    says(page, "All GPUs are taken. You would be next in line")
    page.get_by_role("button", name="Join the queue (1st)").click()
    says(page, "You are next in line for 1 GPU. Your turn is expected about")
    page.get_by_role("button", name="Leave the queue").click()
    page.wait_for_url("**/hub/home")
    context.close()


@pytest.mark.thorough
def test_who_waits_has_the_browser_say_that_their_turn_has_come(hub, page, picture):
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    page.context.grant_permissions(["notifications"], origin=hub.url)
    page.add_init_script(KEEP_NOTIFICATIONS)
    log_in(page, hub, "ada")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line for 1 GPU.")
    page.get_by_role("button", name="Tell me when it's my turn", pressed=False).click()
    says(page, "This browser tells you, as long as this page is open.")
    page.get_by_role("button", name="Tell me when it's my turn", pressed=True).wait_for()
    picture(page, "telling")
    page.reload()  # it is kept
    page.get_by_role("button", name="Tell me when it's my turn", pressed=True).wait_for()
    hub.stop_server("ben")
    page.wait_for_url("**/user/ada/")
    assert page.evaluate("sessionStorage.told") == "It's your turn: Your server has started.|"


@pytest.mark.thorough
@pytest.mark.parametrize("script", [True, False], ids=["with the script", "without it"])
def test_who_has_waited_says_that_they_are_there(hub, browser, picture, script):
    hub.add_to_group("asked", "ada")
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    context = browser.new_context(java_script_enabled=script)
    page = context.new_page()
    log_in(page, hub, "ada")
    page.get_by_role("button", name="Join the queue" if script else "Start").click()
    page.get_by_text("You are next in line for 1 GPU.").wait_for()
    page.get_by_text("When it is your turn you have 12 seconds to say here that").wait_for()
    page.wait_for_timeout(12_000)  # who hasn't waited as long isn't asked
    stop = threading.Thread(target=hub.stop_server, args=("ben",))
    stop.start()
    page.get_by_role("button", name="I'm here").wait_for()
    assert page.title() == "It's your turn"
    picture(page, "asked" if script else "asked-no-script")
    page.get_by_role("button", name="I'm here").click()
    page.wait_for_url("**/user/ada/**")
    stop.join()
    context.close()


@pytest.mark.thorough
def test_who_is_not_there_when_their_turn_comes_reads_so(hub, page):
    hub.add_to_group("asked", "ada")
    hub.start_server("ben", {"gpus": 4, "hours": 1, "image": "minimal"})
    log_in(page, hub, "ada")
    page.get_by_role("button", name="Join the queue").click()
    says(page, "You are next in line for 1 GPU.")
    page.wait_for_timeout(12_000)
    hub.stop_server("ben")
    page.get_by_role("heading", name="Your server didn't start").wait_for()
    page.get_by_text("and nobody said within 12 seconds that they were there").wait_for()
    page.get_by_text("Back to the choice").click()
    page.wait_for_url("**/hub/spawn/ada")
    page.get_by_text("and nobody said within 12 seconds that they were there").wait_for()


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
