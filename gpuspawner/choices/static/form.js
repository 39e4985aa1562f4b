// Keeps the form fresh, and says what the choice on it means. All words come from the hub, which is
// asked for the form anew at its own address: see gpuspawner/choices/form_stream.py. The form works without this.

const root = document.getElementById("gpuspawner");
const form = root.closest("form");
const button = form?.querySelector("[type=submit]");
const forecast = document.getElementById("gpuspawner-forecast");
const sentence = document.getElementById("gpuspawner-sentence");
const without = document.getElementById("gpuspawner-without");
const period = 1000 * root.dataset.period;
const fields = ["image", "gpus", "model", "hours", "not_before", "course"];
const notBefore = document.getElementById("gpuspawner-not-before");
// JupyterHub's own word is English.
const label = button && ((root.lang !== "en" && root.dataset.start) || button.value || button.textContent);

// Part -> the hub's HTML of it, as the page's own is changed below.
let seen = new Map();
let tag = "";
let asking = null;
let timer = 0;
let failures = 0;
let answered = "";
let over = false;
let polling = false;

function parts(node) {
  return [...node.querySelectorAll("[data-part]")];
}

function remember(node) {
  for (const part of parts(node)) seen.set(part.id, part.outerHTML);
}

// Times as this browser's owner has them, in the shape that the server gives them.
// The dashboard's script has the same: the hub serves no file that both could load. A test compares them.
function localise(node) {
  const now = new Date();
  for (const element of node.querySelectorAll("time[datetime]")) {
    const then = new Date(element.dateTime);
    const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (element.dataset.form === "second") shape.second = "2-digit";
    if (then.toDateString() !== now.toDateString()) Object.assign(shape, { weekday: "short", month: "short", day: "numeric" });
    if (then.getFullYear() !== now.getFullYear()) shape.year = "numeric";
    element.textContent = then.toLocaleString(root.lang, shape);
  }
}

function picked() {
  const sent = new FormData(form);
  const choice = {};
  for (const name of fields) if (sent.get(name)) choice[name] = sent.get(name);
  if (choice.gpus && isNaN(choice.gpus)) {
    // A part of a GPU, by its kind.
    choice.kind = choice.gpus;
    choice.gpus = 1;
  }
  for (const name of ["gpus", "hours"]) if (name in choice) choice[name] = Number(choice[name]);
  return choice;
}

// The field is in this browser's time zone; what is sent of it, to ask and to start, is in UTC.
function sendInUTC(event) {
  const time = new Date(event.formData.get("not_before") || NaN);
  if (!isNaN(time)) event.formData.set("not_before", time.toISOString());
}

function showInThisZone() {
  if (!notBefore?.dataset.at) return;
  const time = new Date(1000 * notBefore.dataset.at);
  notBefore.value = new Date(time - 60000 * time.getTimezoneOffset()).toISOString().slice(0, 16);
}

// What can be picked has changed: what was, and where the keyboard is, stays as far as it can.
function exchange(old, block) {
  const chosen = [...old.querySelectorAll("input:checked")].map((input) => input.value);
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  remember(block);
  localise(block);
  old.replaceWith(block);
  const inputs = [...block.querySelectorAll("input:not(:disabled)")];
  for (const input of inputs) if (chosen.includes(input.value)) input.checked = true;
  const next = focused && inputs.find((input) => input.value === focused.value);
  next?.focus();
}

function update(old, block) {
  for (const part of parts(block)) {
    const before = document.getElementById(part.id);
    if (!before || seen.get(part.id) === part.outerHTML) continue;
    seen.set(part.id, part.outerHTML);
    localise(part);
    before.replaceWith(part);
  }
  for (const input of block.querySelectorAll("input[type=radio]")) {
    const before = document.getElementById(input.id);
    if (before && !before.checked) before.disabled = input.disabled;
  }
}

function take(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const block of page.querySelectorAll("[data-block]")) {
    const old = document.getElementById(block.id);
    if (!old) continue;
    (old.dataset.values === block.dataset.values ? update : exchange)(old, block);
  }
  const said = page.getElementById("gpuspawner-sentence");
  if (said) say(said);
}

function say(said) {
  const words = said.innerHTML;
  // Told aloud only where it says something else.
  if (seen.get(sentence.id) !== words) {
    seen.set(sentence.id, words);
    localise(said);
    sentence.innerHTML = said.innerHTML;
  }
  sentence.className = said.className;
  without.hidden = said.dataset.without !== "true";
  const start = said.dataset.start || label;
  if (!button) return;
  if (button.matches("input")) button.value = start;
  else button.textContent = start;
}

function show(name) {
  for (const each of ["fresh", "stale", "over"]) {
    document.getElementById(`gpuspawner-${each}`).hidden = each !== name;
  }
}

function fresh() {
  failures = 0;
  for (const element of forecast.querySelectorAll("#gpuspawner-fresh time, #gpuspawner-stale time")) {
    element.dateTime = new Date().toISOString();
    element.dataset.form = "second";
  }
  localise(forecast);
  show("fresh");
}

async function refresh() {
  clearTimeout(timer);
  asking?.abort();
  if (over || document.hidden) return;
  asking = new AbortController();
  const mine = asking;
  const choice = JSON.stringify(picked());
  try {
    const headers = { "X-GPUSpawner-Choice": encodeURIComponent(choice) };
    if (!polling) headers.Accept = "text/event-stream";
    else if (tag) headers["If-None-Match"] = tag;
    // What lies between may keep the hub's words back until there are many: then ask again and again.
    const patience = polling ? 0 : setTimeout(() => ((polling = true), mine.abort(), refresh()), 8000);
    mine.signal.addEventListener("abort", () => clearTimeout(patience));
    // Never an argument: the hub would take it for a choice, and start a server.
    const answer = await fetch(location.pathname, {
      headers, cache: "no-store", redirect: "manual", signal: mine.signal,
    });
    if (answer.type === "opaqueredirect" || answer.status === 403) return end();
    if (answer.status !== 304 && !answer.ok) throw new Error(answer.statusText);
    const heard = (html) => {
      clearTimeout(patience);
      if (html) take(html);
      answered = choice;
      fresh();
    };
    if (answer.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      await listen(answer.body.getReader(), mine, heard);
    } else {
      const html = await answer.text();
      if (mine.signal.aborted) return;
      if (answer.status !== 304) tag = answer.headers.get("ETag") || "";
      heard(html);
    }
  } catch (error) {
    if (mine.signal.aborted) return;
    failures += 1;
    show("stale");
    // What was said of another choice is better not said of this one.
    if (choice !== answered) {
      tag = "";
      say(document.createElement("p"));
    }
  }
  if (!mine.signal.aborted) later();
}

// Takes over each form that the hub sends, and each sign that the last one still holds.
async function listen(reader, mine, heard) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const silence = setTimeout(() => reader.cancel().catch(() => {}), 15000);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (mine.signal.aborted || done) return;
    text += decoder.decode(value, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) heard(event.startsWith("data: ") ? JSON.parse(event.slice(6)) : "");
  }
}

// Not all open pages at the same moment, and fewer and fewer where the hub is in trouble.
function later() {
  const wait = Math.min((polling || failures ? period : 500) * 2 ** failures, 60000);
  timer = setTimeout(refresh, wait * (0.9 + 0.2 * Math.random()));
}

function end() {
  over = true;
  show("over");
}

function changed(event) {
  if (!fields.includes(event.target.name)) return;
  clearTimeout(timer);
  asking?.abort();
  timer = setTimeout(refresh, event.type === "input" ? 300 : 0);
}

if (form) {
  remember(root);
  seen.set(sentence.id, sentence.innerHTML);
  say(sentence);
  localise(root);
  showInThisZone();
  form.addEventListener("formdata", sendInUTC);
  forecast.hidden = false;
  fresh();
  // After Back, the browser has restored what was picked, and this page is old.
  refresh();
  form.addEventListener("change", changed);
  without.addEventListener("click", () => {
    form.querySelector("input[name=gpus][value='0']").checked = true;
    form.requestSubmit(button);
  });
  form.addEventListener("input", (event) => event.target.type !== "radio" && changed(event));
  form.addEventListener("submit", () => {
    over = true;
    clearTimeout(timer);
    asking?.abort();
  });
  document.addEventListener("visibilitychange", refresh);
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    over = false;
    refresh();
  });
}
