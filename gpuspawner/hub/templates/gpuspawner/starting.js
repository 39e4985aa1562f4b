// Shows the steps of a start as they come, the place in the queue, and what became of it. All words come from the page.

const facts = JSON.parse(document.getElementById("gpuspawner-facts").textContent);
const words = facts.words;
const by = (name) => document.getElementById(`gpuspawner-${name}`);
const language = by("starting").lang;
const steps = by("steps");
const leave = by("leave");
// What else can be done while one waits; without a second server there is no "meanwhile", and with it no "without".
const others = ["change", "meanwhile", "without"].map(by).filter((button) => button);
const buttons = [leave, ...others];
let last = "";
let leaving = false;
let over = false;
let following = false;
// Whether the browser says what becomes of the wait. Only on pages that it takes for secure.
const canTell = isSecureContext && "Notification" in window;
let telling = canTell && Notification.permission === "granted" && localStorage.getItem("gpuspawner-tell") === "yes";

function clock(seconds, precise) {
  const then = new Date(seconds * 1000);
  const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (precise) shape.second = "2-digit";
  const now = new Date();
  if (then.toDateString() !== now.toDateString()) Object.assign(shape, { weekday: "short", month: "short", day: "numeric" });
  if (then.getFullYear() !== now.getFullYear()) shape.year = "numeric";
  return then.toLocaleString(language, shape);
}

function fill(sentence, values) {
  return sentence.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function place(event) {
  const first = event.line_said?.[language] ?? event.line;
  if (event.because === "never" || event.start === null) return first;
  const isSoon = event.start * 1000 - Date.now() < 60000;
  return fill(words.together, { first, second: isSoon ? words.soon : fill(words.expected, { time: clock(event.start) }) });
}

function element(tag, text, more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, more);
}

function mark(item, sign, word) {
  item.querySelector(".gs-mark").textContent = sign;
  item.querySelector(".visually-hidden").textContent = word;
}

// What an event says, in this page's language where the hub has it.
function said(event) {
  return event.gpuspawner?.said?.[language] ?? facts.hub[event.message] ?? event.message;
}

function step(event, ours) {
  const item = document.createElement("li");
  const sign = element("span", "", { className: "gs-mark", ariaHidden: "true" });
  // JupyterHub's own steps have no time.
  const time = element("time", ours.at ? clock(ours.at, true) : "");
  if (ours.at) time.dateTime = new Date(ours.at * 1000).toISOString();
  item.append(sign, time, element("span", "", { className: "visually-hidden" }));
  item.append(element("span", ours.about === "queue" ? words.queue : ours.token ? words.turn : said(event)));
  mark(item, "●", words.now);
  // What goes on is told anew; what is over stays.
  if (ours.about && ours.about === last) steps.lastElementChild.remove();
  else if (steps.lastElementChild) mark(steps.lastElementChild, "✓", words.done);
  steps.append(item);
  last = ours.about;
}

function show(event) {
  const ours = event.gpuspawner || { about: "" };
  const waits = ours.about === "queue";
  by("progress").ariaValueNow = event.progress;
  by("progress").firstElementChild.style.width = `${event.progress}%`;
  if (!event.message || event.ready) return;
  step(event, ours);
  const asked = Boolean(ours.token);
  by("turn").elements.present.value = ours.token ?? "";
  by("turn").hidden = !asked;
  by("line").textContent = ours.place ? place(ours) : waits ? said(event) : asked ? fill(words.say, { time: clock(ours.until) }) : "";
  by("title").textContent = asked ? words.turn : waits ? words.waiting : words.starting;
  if (asked) tell(words.turn, by("line").textContent);
  by("tell").hidden = !canTell || !waits;
  by("telling").hidden = !waits;
  document.title = ours.place ? fill(words.title, { nth: ours.nth_said?.[language] ?? ours.nth }) : by("title").textContent;
  by("away").hidden = !waits;
  others.forEach((button) => (button.hidden = !waits));
  if (!leaving) leave.textContent = waits ? words.leave : words.cancel;
  leave.hidden = false;
}

// Says something where the user sees it who looks at another page.
function tell(title, text) {
  if (!telling) return;
  try {
    const notification = new Notification(title, { body: text, lang: language, tag: facts.server });
    notification.addEventListener("click", () => focus());
  } catch {
    // Some phones show a page's notifications only through a service worker.
  }
}

function showTelling() {
  by("tell").ariaPressed = String(telling);
  by("telling").textContent = telling ? words.telling : Notification.permission === "denied" ? words.silent : "";
}

function fail(event) {
  const reason = by("reason");
  // The hub's own HTML, as on its own page.
  if (event.html_message) reason.innerHTML = event.html_message;
  else reason.textContent = event.message.replace(/^Spawn failed: /, "");
  if (steps.lastElementChild) mark(steps.lastElementChild, "✗", words.failed);
  document.title = by("title").textContent = words.failed;
  for (const part of [by("progress"), by("line"), by("away"), by("turn"), by("tell"), by("telling"), ...buttons]) part.hidden = true;
  tell(words.failed, reason.textContent);
  by("failed").hidden = by("back").hidden = false;
  by("back").focus();
  sayInOurWords();
}

// Why it failed, as the page says it that the hub has here from now on: in its language, and without REST's keys.
async function sayInOurWords() {
  const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  const page = new DOMParser().parseFromString((await answer?.text()) ?? "", "text/html");
  const why = page.getElementById("gpuspawner-why");
  if (why) by("reason").replaceChildren(...why.childNodes);
}

function heard(event) {
  if (event.ready) {
    over = true;
    // Leads to the server. Of one that was cancelled JupyterHub may say this as well.
    if (leaving) return;
    tell(words.turn, words.ready);
    location.reload();
  } else if (event.failed) {
    over = true;
    if (!leaving) fail(event);
  } else show(event);
}

// Not an EventSource: that doesn't show the empty lines by which the hub says that it is there, and a proxy may hold
// a connection whose hub is gone.
async function follow() {
  steps.replaceChildren();
  last = "";
  over = false;
  const answer = await fetch(facts.progress, { cache: "no-store", headers: { Accept: "text/event-stream" } });
  if (!answer.ok) throw new Error(answer.statusText);
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  while (!over) {
    const silence = setTimeout(() => reader.cancel().catch(() => {}), 20000);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (done) break;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.trim();
      if (data.startsWith("data: ")) heard(JSON.parse(data.slice(6)));
    }
  }
  reader.cancel().catch(() => {});
}

async function begin() {
  following = true;
  await follow().catch(() => {});
  following = false;
  if (over || leaving) return;
  by("lost").hidden = false;
  comeBack();
}

// The hub was restarted, or knows nothing of this start: the form says why, or leads to what became of it.
async function comeBack() {
  for (;;) {
    await new Promise((done) => setTimeout(done, 2000));
    const healthy = await fetch(facts.health, { cache: "no-store" }).then((answer) => answer.ok, () => false);
    if (healthy) return location.assign(by("back").href);
  }
}

// Gives this start up, and goes somewhere else.
async function giveUp(button, where) {
  const label = button.textContent;
  leaving = true;
  buttons.forEach((each) => (each.disabled = true));
  button.textContent = words.leaving;
  by("refused").textContent = "";
  const headers = { "X-XSRFToken": facts.xsrf };
  const answer = await fetch(facts.server, { method: "DELETE", headers }).catch(() => null);
  if (answer?.ok || answer?.status === 404) return location.assign(where);
  leaving = false;
  buttons.forEach((each) => (each.disabled = false));
  button.textContent = label;
  const said = await answer?.json().catch(() => null);
  by("refused").textContent = said?.message || words.refused;
  if (!following) begin();
}

// From the queue one leaves for the page with all one's servers; a start that is given up was a wrong choice.
leave.addEventListener("click", () => giveUp(leave, last === "queue" ? facts.home : by("back").href));
by("change").addEventListener("click", async () => {
  // The place is kept for who comes back with another choice.
  await fetch(location.href, { cache: "no-store", headers: { "X-GPUSpawner-Change": "1" } }).catch(() => null);
  giveUp(by("change"), by("back").href);
});
by("without")?.addEventListener("click", () => giveUp(by("without"), facts.without));

by("tell").addEventListener("click", async () => {
  telling = !telling && (await Notification.requestPermission()) === "granted";
  localStorage.setItem("gpuspawner-tell", telling ? "yes" : "no");
  showTelling();
});
by("turn").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = by("present");
  button.disabled = true;
  // The page that this gets is the same as this one; what comes of it is told as the next step.
  const query = new URLSearchParams(new FormData(by("turn")));
  const answer = await fetch(`${location.pathname}?${query}`, { cache: "no-store" }).catch(() => null);
  button.disabled = false;
  if (!answer?.ok) by("refused").textContent = words.refused;
});

if (canTell) showTelling();
begin();
window._jupyterhub_page_loaded = true;
