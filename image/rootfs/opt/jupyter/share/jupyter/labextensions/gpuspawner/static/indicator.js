/* The item in the status bar, and the panel behind it. */

import { homeWords } from "./home.js";
import { gigabytes, WAITED_FOR } from "./words.js";

/** Return an element; `attributes` may be none, what comes after them goes into it. */
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Return the item of a server without GPUs, with a link to the page where one gets some. */
export function withoutGpus(words, home) {
  const link = element("a", { href: home, target: "_blank", class: "gpuspawner-get" });
  link.append(words.say("get one"));
  return element("div", { class: "gpuspawner-item" }, `${words.say("no GPU")} · `, link);
}

export class Indicator {
  /**
   * @param words - the reader's language.
   * @param actions - `extend` returns the new end, `here` nothing; both may throw a sentence.
   * @param dashboard - the address of the page with all GPUs; "" where there is none.
   */
  constructor(words, actions, dashboard) {
    this._words = words;
    this._actions = actions;
    this._dashboard = dashboard;
    this._facts = null;
    this.onOpen = () => {};
    this._button = element("button", { type: "button", class: "gpuspawner-button" });
    this.node = element("div", { class: "gpuspawner-item", hidden: "" }, this._button);
    this._makePanel();
  }

  _makePanel() {
    const say = (sentence) => this._words.say(sentence);
    const title = element("h2", { id: "gpuspawner-title" }, say("GPUs of this server"));
    this._rows = element("ul", {});
    this._time = element("p", {});
    this._later = element("p", {});
    this._home = element("p", {});
    this._news = element("p", { class: "gpuspawner-news" });
    this._said = element("p", { role: "status" });
    this._extend = this._action("extend", say("Extend"), (until) =>
      this._words.say("This server now ends at {moment}.", { moment: this._words.moment(until) })
    );
    this._here = this._action("here", say("I'm still here"), () => say("The GPUs stay yours."));
    const buttons = element("p", { class: "gpuspawner-actions" }, this._extend, this._here);
    this._panel = element(
      "div",
      {
        id: "gpuspawner-panel",
        class: "gpuspawner-panel",
        role: "dialog",
        "aria-labelledby": title.id,
        tabindex: "-1",
        popover: "auto",
      },
      ...[title, this._rows, this._time, this._later, this._home],
      ...[this._news, buttons, this._said]
    );
    if (this._dashboard) {
      const link = element("a", { href: this._dashboard, target: "_blank" });
      link.append(say("All GPUs of this machine"));
      this._panel.append(element("p", {}, link));
    }
    document.body.append(this._panel);
    // The browser opens and closes it, also by a press beside it. Escape would reach JupyterLab too,
    // which then takes the focus.
    this._panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      this._panel.hidePopover();
      this._button.focus();
    });
    this._button.popoverTargetElement = this._panel;
    this._button.setAttribute("aria-haspopup", "dialog");
    this._button.setAttribute("aria-expanded", "false");
    this._panel.addEventListener("toggle", (event) => this._toggled(event.newState === "open"));
  }

  _action(name, label, done) {
    const button = element("button", { type: "button" }, label);
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        this._said.textContent = done(await this._actions[name]());
      } catch (error) {
        this._said.textContent = this._words.say(error.message);
      }
      button.disabled = false;
    });
    return button;
  }

  _toggled(open) {
    this._button.setAttribute("aria-expanded", String(open));
    this._said.textContent = "";
    this.onOpen(open);
    if (!open) return;
    this._show();
    this._panel.focus();
  }

  /** Add something to the panel. */
  add(part) {
    this._panel.append(part);
  }

  /** Show a lease. */
  show(facts) {
    this._facts = facts;
    this.node.hidden = facts.count === 0;
    const words = this._words;
    const text = facts.ended
      ? words.say("stopped")
      : [words.gpus(facts), ...this._left(facts)].join(" · ");
    // Written only where it changes, so that a screen reader isn't disturbed in between.
    if (this._button.textContent !== text) {
      this._button.textContent = text;
      this._button.title = words.say("GPUs of this server");
      this._button.setAttribute("aria-label", `${words.say("GPUs of this server")}: ${text}`);
    }
    this._button.classList.toggle("gpuspawner-soon", 
      facts.endsSoon || facts.idleUntil !== null || facts.stop !== null
    );
    if (this._panel.matches(":popover-open")) this._show();
  }

  _left({ until }) {
    if (until === null) return [];
    return [this._words.say("{time} left", { time: this._words.left(until) })];
  }

  _show() {
    const [facts, words] = [this._facts, this._words];
    this._rows.replaceChildren(...facts.gpus.map((gpu) => this._row(gpu)));
    this._time.textContent = facts.ended
      ? words.ended(facts.ended)
      : facts.until !== null
        ? words.say("Your time ends at {moment}.", { moment: words.moment(facts.until) })
        : facts.live
          ? words.say("Your time doesn't end.")
          : "";
    this._news.textContent = facts.live || facts.ended
      ? ""
      : facts.at === null
        ? words.say("What the GPUs do can't be shown here.")
        : words.say("JupyterHub doesn't answer. What is shown is from {moment}.", {
            moment: words.moment(facts.at),
          });
    this._home.textContent = facts.home ? homeWords(words, facts.home) : "";
    const early = facts.extendFrom !== null && facts.extendFrom > Date.now();
    this._later.textContent =
      !facts.live || facts.until === null
        ? ""
        : facts.stop
          ? words.stops(facts.stop)
        : facts.waiting
          ? words.say(WAITED_FOR, { count: facts.waiting })
          : early
            ? words.say("It can be extended from {moment} on.", {
                moment: words.moment(facts.extendFrom),
              })
            : "";
    this._extend.hidden =
      !facts.live || facts.until === null || facts.stop !== null || early || facts.waiting > 0;
    this._here.hidden = !facts.live || facts.idleUntil === null;
    this._place();
  }

  _row(gpu) {
    const words = this._words;
    const [used, total] = [gpu.used, gpu.total].map((mib) => (mib === null ? "" : gigabytes(mib)));
    const memory = used && total ? words.say("{used} of {total} GB", { used, total }) : null;
    return element(
      "li",
      {},
      element("strong", {}, words.name(gpu)),
      // In the server they are counted from 0.
      element("span", { class: "gpuspawner-model" }, `${gpu.model ?? ""} · nvidia-smi: ${gpu.inside}`),
      this._bar(words.say("use"), gpu.use, gpu.use === null ? null : `${gpu.use} %`),
      this._bar(words.say("memory"), memory && (100 * gpu.used) / gpu.total, memory)
    );
  }

  _bar(name, percent, text) {
    const bar = element("span", { class: "gpuspawner-bar" }, element("i", {}));
    bar.setAttribute("aria-hidden", "true"); // the number says it
    bar.firstChild.style.width = `${Math.min(100, percent ?? 0)}%`;
    const value = element("span", {}, text ?? this._words.say("unknown"));
    return element("span", { class: "gpuspawner-value" }, element("span", {}, name), bar, value);
  }

  /** Put the panel beside the button: above one at the bottom, below one at the top. */
  _place() {
    const at = this._button.getBoundingClientRect();
    const { style, offsetWidth } = this._panel;
    style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - offsetWidth - 8))}px`;
    const below = at.top < window.innerHeight / 2;
    style.top = below ? `${at.bottom + 6}px` : "auto";
    style.bottom = below ? "auto" : `${window.innerHeight - at.top + 6}px`;
  }
}
