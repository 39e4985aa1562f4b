// The buttons of the home page, which stays fresh while a server starts, waits or stops. All words come from the page.

const facts = JSON.parse(document.getElementById("gpuspawner-facts").textContent);
const home = document.getElementById("gpuspawner-home");
const refused = document.getElementById("gpuspawner-refused");
const added = document.getElementById("gpuspawner-new");
const PERIOD_MS = 5000;
let seen = "";
let timer = 0;

{% include "gpuspawner/times.js" %}

function servers() {
  return document.getElementById("gpuspawner-servers");
}

function prepare() {
  seen = servers().innerHTML;
  localise(home, home.lang);
  for (const button of home.querySelectorAll("button[hidden]")) button.hidden = false;
}

function address(name) {
  return name ? `${facts.servers}/servers/${encodeURIComponent(name)}` : `${facts.servers}/server`;
}

// Stops a server, takes it out of the queue, or deletes one that is off.
async function end(button) {
  const { server, sure } = button.dataset;
  if (sure && !confirm(sure)) return;
  const label = button.textContent;
  button.disabled = true;
  button.textContent = facts.words.leaving;
  refused.textContent = "";
  const headers = { "X-XSRFToken": facts.xsrf, "Content-Type": "application/json" };
  const body = JSON.stringify(sure ? { remove: true } : {});
  const answer = await fetch(address(server), { method: "DELETE", headers, body }).catch(() => null);
  if (!answer?.ok && answer?.status !== 404) {
    const said = await answer?.json().catch(() => null);
    refused.textContent = said?.message || facts.words.refused;
    button.disabled = false;
    button.textContent = label;
  }
  refresh();
}

// Takes the list of servers anew where it has changed.
async function refresh() {
  clearTimeout(timer);
  const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  const page = answer?.ok && !answer.redirected ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
  const list = page?.getElementById("gpuspawner-servers");
  if (list && list.innerHTML !== seen) {
    const focused = [...servers().querySelectorAll("a, button")].indexOf(document.activeElement);
    servers().replaceWith(list);
    prepare();
    if (focused >= 0) servers().querySelectorAll("a, button")[focused]?.focus();
  }
  plan();
}

function plan() {
  if (servers().querySelector(".gs-is-starting, .gs-is-waiting, .gs-is-stopping, .gs-asks")) timer = setTimeout(refresh, PERIOD_MS);
}

home.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.server !== undefined) end(button);
  if (button?.dataset.copy) {
    await navigator.clipboard?.writeText(button.previousElementSibling.textContent);
    button.textContent = button.dataset.copy;
  }
});

if (added) {
  added.hidden = false;
  added.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = document.getElementById("gpuspawner-name").value.trim();
    if (!name) return;
    const go = (slug) => location.assign(facts.spawn + encodeURIComponent(slug) + (slug === name ? "" : `?display_name=${encodeURIComponent(name)}`));
    // From JupyterHub 6 on a name of a server is made of what its user calls it.
    if (facts.slugs) require(["utils"], (utils) => go(utils.safe_slug(utils.sanitise_display_name(name))));
    else go(name);
  });
}
prepare();
plan();
window._jupyterhub_page_loaded = true;
