// Keeps the page fresh: fetches its changing part and takes over the pieces that differ. All words
// come from the server. The page works without this file too.

const live = document.getElementById("live");
const lost = document.getElementById("lost");
const news = document.getElementById("news");
// Piece -> the server's HTML of it, as the page's own was changed below.
let seen = pieces(live);
let busy = false;

function pieces(root) {
  return new Map([...root.querySelectorAll("[data-part]")].map((part) => [part.id, part.outerHTML]));
}

// Times as this browser's owner has them, in the shape that the server gives them.
function localise(node) {
  const now = new Date();
  for (const element of node.querySelectorAll("time[datetime]")) {
    const then = new Date(element.dateTime);
    const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (element.dataset.form === "second") shape.second = "2-digit";
    if (then.toDateString() !== now.toDateString()) Object.assign(shape, { weekday: "short", month: "short", day: "numeric" });
    if (then.getFullYear() !== now.getFullYear()) shape.year = "numeric";
    element.textContent = then.toLocaleString(document.documentElement.lang, shape);
    element.title = then.toLocaleString(document.documentElement.lang, { dateStyle: "full", timeStyle: "long", hourCycle: "h23" });
  }
}

// Whether somebody is about to use it: that mustn't be taken from under their hands.
function inUse(part) {
  return part.contains(document.activeElement) || part.querySelector("details[open]");
}

function take(fresh) {
  const now = pieces(fresh);
  const same = [...now.keys()].join() === [...seen.keys()].join();
  if (!same && inUse(live)) return;
  localise(fresh);
  tell(fresh);
  if (!same) {
    live.replaceChildren(...fresh.childNodes);
    seen = now;
    return;
  }
  for (const element of fresh.querySelectorAll("[data-class]")) {
    document.getElementById(element.id).className = element.className;
  }
  for (const part of [...fresh.querySelectorAll("[data-part]")]) {
    const old = document.getElementById(part.id);
    if (seen.get(part.id) === now.get(part.id) || inUse(old)) continue;
    seen.set(part.id, now.get(part.id));
    old.replaceWith(part);
  }
}

// Says aloud what has changed, and no numbers.
function tell(fresh) {
  const before = new Set([...live.querySelectorAll("[data-news]")].map((e) => e.dataset.news));
  const changed = [...fresh.querySelectorAll("[data-news]")]
    .filter((element) => !before.has(element.dataset.news))
    .map((element) => element.querySelector(".gs-aloud")?.textContent.trim())
    .filter(Boolean);
  if (changed.length) news.textContent = changed.slice(0, 8).join(". ");
}

async function refresh() {
  if (document.hidden || busy) return;
  busy = true;
  try {
    const answer = await fetch(live.dataset.source, {
      headers: { "X-XSRFToken": live.dataset.xsrf },
      cache: "no-store",
      redirect: "error",
    });
    if (answer.status === 403) return logInAgain();
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    lost.hidden = true;
    take(page.body);
  } catch {
    lost.hidden = false;
  } finally {
    busy = false;
  }
}

// The log-in has ended, or the service was started anew: loading the page leads through the hub.
function logInAgain() {
  const last = Number(sessionStorage.getItem("gpus-loaded") || 0);
  if (inUse(live) || Date.now() - last < 60_000) {
    lost.hidden = false;
    return;
  }
  sessionStorage.setItem("gpus-loaded", String(Date.now()));
  location.reload();
}

// A pop-up closes by a press anywhere else, and by Escape.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.gs-more[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.gs-more[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});

// What a button copies is in a field beside it, from where it can be taken without this too.
for (const button of document.querySelectorAll("button[data-copies]")) {
  const field = document.getElementById(button.dataset.copies);
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    field.select();
    await navigator.clipboard.writeText(field.value);
    news.textContent = button.textContent = button.dataset.done;
  });
}

localise(live);
setInterval(refresh, Number(live.dataset.seconds) * 1000);
document.addEventListener("visibilitychange", refresh);
