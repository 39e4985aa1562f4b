/* The item in the status bar, and the panel behind it. */

import { homeWords } from "./home.js";
import { actionButton, element, Panel } from "./panel.js";
import { gigabytes, WAITED_FOR } from "./words.js";

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
    this._panel = this._makePanel();
    this._panel.onToggle = (open) => this._toggled(open);
    this._button = this._panel.button;
    this.node = element("div", { class: "gpuspawner-item", hidden: "" }, this._button);
  }

  _makePanel() {
    const say = (sentence) => this._words.say(sentence);
    this._rows = element("ul", {});
    this._time = element("p", {});
    this._later = element("p", {});
    this._share = element("p", {});
    this._home = element("p", {});
    this._news = element("p", { class: "gpuspawner-news" });
    this._said = element("p", { role: "status" });
    this._extend = this._action("extend", say("Extend"), (until) =>
      this._words.say("This server now ends at {moment}.", { moment: this._words.moment(until) })
    );
    this._here = this._action("here", say("I'm still here"), () => say("The GPUs stay yours."));
    const buttons = element("p", { class: "gpuspawner-actions" }, this._extend, this._here);
    const texts = [this._time, this._later, this._share, this._home, this._news];
    const parts = [this._rows, ...texts, buttons, this._said];
    if (this._dashboard) {
      const link = element("a", { href: this._dashboard, target: "_blank" });
      link.append(say("All GPUs of this machine"));
      parts.push(element("p", {}, link));
    }
    return new Panel(say("GPUs of this server"), this._said, ...parts);
  }

  _action(name, label, done) {
    const act = async () => done(await this._actions[name]());
    return actionButton(label, this._said, this._words, act);
  }

  _toggled(open) {
    this.onOpen(open);
    if (open) this._show();
  }

  /** Add something to the panel. */
  add(part) {
    this._panel.node.append(part);
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
      facts.endsSoon || facts.idleUntil !== null || facts.stop !== null || Boolean(facts.memory?.next)
    );
    if (this._panel.isOpen) this._show();
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
    this._share.textContent = this._shareWords(facts.memory);
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
    this._panel.place();
  }

  _shareWords(memory) {
    const words = this._words;
    if (!memory) return "";
    if (!memory.guarded) {
      return words.say("Nothing limits what a server takes of the shared GPU's memory.");
    }
    const [used, part] = [memory.used, memory.part].map((mib) => mib === null ? "" : gigabytes(mib));
    return used && part
      ? words.say("This server holds {used} of its {part} GB of the shared GPU's memory.", { used, part })
      : "";
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
}
