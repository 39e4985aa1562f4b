/* How much its user keeps at home, and the warning where that is nearly all that is allowed. */

import { Notice } from "./notice.js";
import { gigabytes } from "./words.js";

const LARGE = "du -sh ~/* ~/.[!.]* | sort -h";
const EMPTY_TRASH = "rm -rf ~/.local/share/Trash/* ~/*/.Trash-*/*";

/**
 * Return how full the home of a server is, by the hub's answer; null where that isn't known.
 *
 * - `used`, `allowed`: in bytes; `allowed` is null without a limit.
 * - `nearlyFull`: whether to warn. `enforced`: whether more can't be written.
 */
export function home(hub, answer) {
  const found = answer?.homes?.find(
    (each) => each.user === hub.user && (each.server === "" || each.server === hub.server)
  );
  return found
    ? {
        used: found.used_bytes,
        allowed: found.allowed_bytes,
        nearlyFull: found.nearly_full,
        enforced: found.enforced,
      }
    : null;
}

/** Return how much it is, as a sentence. */
export function homeWords(words, { used, allowed }) {
  const values = { used: amount(used) };
  return allowed === null
    ? words.say("Your files take {used} GB.", values)
    : words.say("Your files take {used} of {total} GB.", { ...values, total: amount(allowed) });
}

export class HomeWarning {
  /**
   * @param lab - the parts of JupyterLab that are needed: `Notification`, and `showDialog`,
   *   `Dialog` and `Widget` for what to do.
   * @param words - the reader's language.
   * @param name - of the server: in a browser's tab each is warned of once.
   */
  constructor(lab, words, name) {
    this._lab = lab;
    this._words = words;
    this._notice = new Notice(lab.Notification);
    this._key = `gpuspawner:home:${name}`;
    this._shown = false;
    this._warned = null;
  }

  /** Warn, once, and take it back where it isn't so any more. */
  show(facts) {
    if (!facts?.nearlyFull) {
      if (facts && this._shown) {
        this._notice.show(null);
        this._warned = true;
      }
      return;
    }
    if (this._warned === null) this._warned = this._hasWarned();
    if (this._warned) return;
    this._shown = true;
    const message = this._words.say("{much} Remove what you no longer need.", {
      much: homeWords(this._words, facts),
    });
    this._notice.show({ message, label: this._words.say("How?"), press: () => this._explain(facts) });
  }

  // A page that is loaded anew doesn't say it again.
  _hasWarned() {
    try {
      const before = sessionStorage.getItem(this._key) !== null;
      sessionStorage.setItem(this._key, "1");
      return before;
    } catch {
      return false; // a browser that keeps nothing
    }
  }

  _explain(facts) {
    const say = (sentence) => this._words.say(sentence);
    const node = document.createElement("div");
    const add = (tag, text) => {
      const made = document.createElement(tag);
      made.textContent = text;
      node.append(made);
    };
    if (facts.enforced) add("p", say("When no room is left, nothing can be saved any more."));
    add("p", say("In a terminal, this shows what is large:"));
    add("pre", LARGE);
    add("p", say("What you delete in the file browser is in the Trash, and counts until you empty it:"));
    add("pre", EMPTY_TRASH);
    return this._lab.showDialog({
      title: homeWords(this._words, facts),
      body: new this._lab.Widget({ node }),
      buttons: [this._lab.Dialog.okButton()],
    });
  }
}

function amount(bytes) {
  return gigabytes(bytes / 2 ** 20);
}
