/* A GPU for a server that runs without: its request, its place, what is reserved for it, and the switch.
 * And the way back: a server that gives its GPUs back.
 */

import { byClock } from "./lease.js";
import { Refusal } from "./hub.js";
import { actionButton, element, Panel } from "./panel.js";

// How often the hub is asked while a request waits; without one only when somebody comes to the page.
const PERIOD_MS = 20_000;
const LONGEST_MS = 300_000;
// How often it is looked whether a server that is restarted is there again, and for how long.
const LOOK_MS = 700;
const PATIENCE_MS = 300_000;
// A restart that nobody saw is over by then.
const SURELY_OVER_MS = 20_000;
// How often the hub is asked meanwhile whether it still restarts it, and after how long it is said that
// the server is away where the hub doesn't tell.
const ASK_MS = 3_000;
const UNSURE_MS = 60_000;
const NOT_YET = "The server hasn't come back yet: the home page says why.";

/** The restart of this page's server, after which the page is loaded anew. */
export class Restart {
  /**
   * @param app - JupyterLab's application.
   * @param notification - JupyterLab's `Notification`.
   * @param words - the reader's language.
   * @param hub - the hub.
   * @param home - the address of the hub's home page.
   */
  constructor(app, notification, words, hub, home) {
    this._app = app;
    this._notification = notification;
    this._words = words;
    this._hub = hub;
    this._home = home;
    this._isFollowing = false;
    /** Why the server isn't back, as a sentence; "" while that isn't known. `onAway` is called then. */
    this.away = "";
    this.onAway = () => {};
  }

  /** Save, have the hub restart the server by `act`, and wait until it is back; throws what `act` does. */
  async run(act) {
    const { commands } = this._app;
    if (commands.hasCommand("docmanager:save-all")) {
      // What can't be saved now the server asks for when it ends.
      await commands.execute("docmanager:save-all").catch(() => {});
    }
    await act();
    await this.follow();
  }

  /**
   * Wait until the server is back, whoever has it restarted. One that doesn't come back is told of as
   * soon as the hub says that the restart is over, and waited for all the same: its user may start it.
   */
  async follow() {
    if (this._isFollowing) return;
    this._isFollowing = true;
    const said = this._words.say("The server saves and restarts. This page comes back with it.");
    const id = this._notification.emit(said, "in-progress", { autoClose: false });
    const began = Date.now();
    let [wasAway, isTold, askedAt] = [false, false, began];
    while (Date.now() - began < PATIENCE_MS) {
      await new Promise((done) => setTimeout(done, LOOK_MS));
      const answers = await this._answers();
      if (answers && (wasAway || Date.now() - began > SURELY_OVER_MS)) {
        location.reload();
        return;
      }
      wasAway ||= !answers;
      if (answers || isTold || Date.now() - askedAt < ASK_MS) continue;
      askedAt = Date.now();
      const why = await this._whyAway(askedAt - began);
      isTold = Boolean(why) && !(await this._answers());
      if (isTold) this._tellAway(id, why);
    }
    if (!isTold) this._tellAway(id, this._words.say(NOT_YET));
    this._isFollowing = false;
  }

  async _answers() {
    const { baseUrl } = this._app.serviceManager.serverSettings;
    // It answers that to everybody. While it is off, the hub answers in its place.
    const answer = await fetch(`${baseUrl}api`, { cache: "no-store" }).catch(() => null);
    return answer?.ok && (await answer.json().catch(() => null))?.version !== undefined;
  }

  /** Return what to say of a server that is away for so long; "" while it is being restarted. */
  async _whyAway(forMs) {
    const { user, server } = this._hub;
    try {
      const { requests } = await this._hub.status();
      const ours = requests?.find((each) => each.user === user && each.server === server);
      return ours?.restarting ? "" : this._words.say("The server isn't running: the home page says why.");
    } catch {
      // With the server the hub may have forgotten this page's token.
      if (forMs < UNSURE_MS) return "";
      return this._words.say(NOT_YET);
    }
  }

  _tellAway(id, message) {
    this.away = message;
    this.onAway();
    const label = this._words.say("Home page");
    const actions = [{ label, callback: () => location.assign(this._home), displayType: "accent" }];
    this._notification.update({ id, message, type: "error", autoClose: false, actions });
  }
}

/**
 * Return the part of the panel by which a server's GPUs are given back.
 *
 * @param words - the reader's language.
 * @param restart - the `Restart` of the server.
 * @param hub - the hub.
 */
export function givesBack(words, restart, hub) {
  const said = element("p", { role: "status" });
  const giveBack = () => restart.run(() => hub.giveBack());
  const button = actionButton(words.say("Give them back"), said, words, giveBack);
  return element(
    "details",
    { class: "gpuspawner-more" },
    element("summary", {}, words.say("Give the GPUs back…")),
    element("p", {}, words.say("The server saves, and starts again without GPUs. Programs in it end, your files are kept.")),
    element("p", { class: "gpuspawner-actions" }, button),
    said
  );
}

/** Return whether a kind of GPUs, as the hub names them, is a part of one. */
function isPart(kind) {
  return Boolean(kind) && kind !== "gpu";
}

/**
 * Return the kinds of GPUs that there are to ask for, whole ones first; the hub says who may have them.
 *
 * @param answer - the hub's, `facts.status` of the dashboard.
 */
export function kindsOf(answer) {
  // The whole of a GPU in MIG mode isn't handed out; an older hub knows of whole ones alone.
  const offered = (answer.gpus ?? []).filter((gpu) => gpu.state !== "mig" && gpu.state !== "excluded");
  const kinds = [...new Set(offered.map((gpu) => gpu.kind ?? "gpu"))].sort();
  return kinds.includes("gpu") ? ["gpu", ...kinds.filter(isPart)] : kinds;
}

/** The status bar's item of a server without GPUs, and the panel behind it. */
export class GetGPU {
  /**
   * @param lab - the parts of JupyterLab that are needed: `Notification`.
   * @param words - the reader's language.
   * @param hub - the hub, which is reachable.
   * @param restart - the `Restart` of the server.
   * @param home - the address of the hub's home page.
   */
  constructor(lab, words, hub, restart, home) {
    this._notification = lab.Notification;
    this._words = words;
    this._hub = hub;
    this._restart = restart;
    this._request = null;
    this._timer = 0;
    this._failures = 0;
    this._asking = false;
    // What the notification is about, so that one that was closed doesn't come again.
    this._told = "";
    this._notice = null;
    this._panel = this._makePanel(home);
    this._panel.onToggle = (open) => open && void this._look();
    this._restart.onAway = () => this._show();
    this._button = this._panel.button;
    this.node = element("div", { class: "gpuspawner-item" }, this._button);
  }

  /** Find out what the server has asked for, and follow that. */
  start() {
    this._show();
    document.addEventListener("visibilitychange", () => document.hidden || this._look());
    void this._look();
  }

  _makePanel(home) {
    const say = (sentence) => this._words.say(sentence);
    this._text = element("p", {});
    this._number = element("input", { type: "number", min: "1", value: "1", id: "gpuspawner-number" });
    this._many = element("p", {}, element("label", { for: "gpuspawner-number" }, say("How many?")), " ", this._number);
    this._kinds = element("select", { id: "gpuspawner-kind" });
    this._kinds.addEventListener("change", () => this._show());
    this._which = element("p", {}, element("label", { for: "gpuspawner-kind" }, say("Which kind?")), " ", this._kinds);
    this._said = element("p", { role: "status" });
    this._ask = this._action("Get a GPU", () => {
      const kind = this._kinds.value;
      return isPart(kind) ? this._hub.ask(1, kind) : this._hub.ask(Number(this._number.value) || 1, kind);
    });
    this._switch = this._action("Switch now", () => this._switchNow());
    this._leave = this._action("Leave the queue", () => this._hub.letGo());
    const buttons = [this._ask, this._switch, this._leave];
    const more = element("a", { href: home, target: "_blank" }, say("All your servers"));
    const actions = element("p", { class: "gpuspawner-actions" }, ...buttons);
    const parts = [this._text, this._which, this._many, actions, this._said, element("p", {}, more)];
    return new Panel(say("A GPU for this server"), this._said, ...parts);
  }

  _action(label, act) {
    const actAndLook = async () => {
      try {
        await act();
      } finally {
        void this._look();
      }
    };
    return actionButton(this._words.say(label), this._said, this._words, actAndLook);
  }

  async _switchNow() {
    await this._restart.run(async () => {
      await this._hub.switch();
      // The hub may say nothing more to this page.
      this._request = { restarting: true };
      this._show();
    });
  }

  /** Ask the hub, and again in a while where there is something to follow. */
  async _look() {
    clearTimeout(this._timer);
    if (this._asking) return;
    this._asking = true;
    try {
      const answer = { ...(await this._hub.status()), at: Date.now() };
      this._request = this._ours(answer);
      this._offer(kindsOf(answer));
      this._failures = 0;
    } catch {
      this._failures += 1;
    }
    this._asking = false;
    this._show();
    if (this._request?.restarting) void this._restart.follow();
    if (!this._request) return;
    const pause = Math.min(PERIOD_MS * 2 ** this._failures, LONGEST_MS);
    this._timer = setTimeout(() => this._look(), pause * (0.85 + 0.3 * Math.random()));
  }

  _ours(answer) {
    const { user, server } = this._hub;
    const found = answer.requests?.find((each) => each.user === user && each.server === server);
    if (!found) return null;
    const moment = byClock(answer);
    const until = found.offer ? moment(found.offer.until) : null;
    return { ...found, until, expected: moment(found.expected) };
  }

  /** Let a kind be chosen where there are several, or parts of GPUs alone. */
  _offer(kinds) {
    const there = [...this._kinds.options].map((option) => option.value);
    if (there.join() === kinds.join()) return;
    const chosen = this._kinds.value;
    const options = kinds.map((kind) => element("option", { value: kind }, this._words.kind(kind)));
    this._kinds.replaceChildren(...options);
    if (kinds.includes(chosen)) this._kinds.value = chosen;
  }

  _show() {
    const request = this._request;
    const text = this._barText(request);
    if (this._button.textContent !== text) this._button.textContent = text;
    this._button.classList.toggle("gpuspawner-soon", Boolean(request?.until));
    this._text.textContent = this._sentence(request);
    const offered = Boolean(request?.until);
    const waits = request?.gpus > 0 && !offered;
    const asks = !(waits || offered || request?.restarting);
    this._ask.hidden = !asks;
    this._which.hidden = !asks || this._kinds.options.length < 2;
    this._many.hidden = !asks || isPart(this._kinds.value);
    this._switch.hidden = !offered || request.restarting;
    this._leave.hidden = !(waits || offered) || request.restarting;
    this._leave.textContent = this._words.say(offered ? "Not now" : "Leave the queue");
    this._tell(request);
  }

  _barText(request) {
    const words = this._words;
    if (request?.until) {
      return words.say("GPU reserved until {moment}", { moment: words.moment(request.until) });
    }
    if (request?.place != null) {
      const { place, of } = request;
      return `${words.say("no GPU")} · ${words.say("place {place} of {of}", { place, of })}`;
    }
    return `${words.say("no GPU")} · ${words.say("get one")}`;
  }

  _sentence(request) {
    const words = this._words;
    if (request?.restarting) {
      const comesBack = "The server saves and restarts. This page comes back with it.";
      return this._restart.away || words.say(comesBack);
    }
    if (request?.until) return this._offered(request);
    if (request?.gpus > 0) {
      const { place, of } = request;
      if (place === null) return words.say("It goes on while it waits for GPUs.");
      const waits = words.say("It goes on while it waits for GPUs: place {place} of {of}.", { place, of });
      if (!request.expected) return waits;
      const moment = words.moment(request.expected);
      return `${waits} ${words.say("Its turn is expected about {moment}.", { moment })}`;
    }
    return request?.notice ||
      words.say("The server goes on while it waits. At its turn it saves, and starts again with the GPUs and the same files.");
  }

  _offered({ gpus, kind, until }) {
    const words = this._words;
    const moment = words.moment(until);
    if (isPart(kind)) {
      const what = words.kind(kind);
      return words.say("A part of a GPU ({what}) is reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.", { what, moment });
    }
    return gpus === 1
      ? words.say("A GPU is reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.", { moment })
      : words.say("{gpus} GPUs are reserved for you until {moment}. To switch, the server saves and restarts; programs in it end.", { gpus, moment });
  }

  /** Notify of an offer, and of what became of a request, each once. */
  _tell(request) {
    const words = this._words;
    const about = request?.restarting ? "" : request?.until ? request.offer.until : request?.notice ?? "";
    if (about === this._told) return;
    this._told = about;
    if (this._notice !== null) this._notification.dismiss(this._notice);
    this._notice = null;
    if (!about) return;
    const acts = request.until
      ? [
          [words.say("Switch now"), () => this._switchNow(), "accent"],
          [words.say("Not now"), () => this._hub.letGo(), "default"],
        ]
      : [[words.say("OK"), () => this._hub.letGo(), "default"]];
    const actions = acts.map(([label, act, displayType]) => ({
      label,
      displayType,
      callback: () => void this._do(act),
    }));
    const message = request.until ? this._offered(request) : request.notice;
    this._notice = this._notification.emit(message, request.until ? "warning" : "info", {
      autoClose: false,
      actions,
    });
  }

  async _do(act) {
    try {
      await act();
    } catch (error) {
      const said = error instanceof Refusal ? error.message : this._words.say(error.message);
      this._notification.error(said, { autoClose: false });
    }
    await this._look();
  }
}
