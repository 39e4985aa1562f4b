/* The warnings before a server's end and for idle GPUs, as JupyterLab's notifications.
 *
 * JupyterLab cuts off what is longer than 140 characters.
 */

import { Refusal } from "./hub.js";
import { WAITED_FOR } from "./words.js";

// Good news may go by itself.
const GOOD_NEWS_MS = 10_000;

export class Warnings {
  /**
   * @param notification - JupyterLab's `Notification`.
   * @param words - the reader's language.
   * @param actions - `extend` returns the new end, `here` nothing; both may throw.
   */
  constructor(notification, words, actions) {
    this._words = words;
    this._end = new Notice(notification);
    this._idle = new Notice(notification);
    this._stop = new Notice(notification);
    this._ended = new Notice(notification);
    this._actions = actions;
    this._refusal = "";
  }

  /** Show what a lease gives reason to, and take back what it doesn't any more. */
  show(facts) {
    if (!facts.endsSoon) this._refusal = "";
    this._end.show(facts.endsSoon && !facts.stop && !facts.ended ? this._ends(facts) : null);
    this._stop.show(facts.stop ? { message: this._words.stops(facts.stop) } : null);
    this._ended.show(facts.ended ? { message: this._words.ended(facts.ended) } : null);
    this._idle.show(facts.idleUntil === null ? null : this._idles(facts));
  }

  _ends(facts) {
    const words = this._words;
    const moment = words.moment(facts.until);
    const stopped = words.say(
      "This server is stopped at {moment}, when its time ends. Save your work.",
      { moment }
    );
    if (!facts.live) return { message: stopped };
    if (facts.waiting) {
      return { message: `${stopped} ${words.say(WAITED_FOR, { count: facts.waiting })}` };
    }
    if (this._refusal) return { message: this._refusal };
    return {
      message: words.say(
        "This server is stopped at {moment}, when its time ends. Save your work, or extend it.",
        { moment }
      ),
      label: words.say("Extend"),
      press: () => this._extend(facts),
    };
  }

  async _extend(facts) {
    try {
      const until = await this._actions.extend();
      const moment = this._words.moment(until);
      this._end.finish(this._words.say("This server now ends at {moment}.", { moment }));
    } catch (error) {
      if (error instanceof Refusal) {
        this._refusal = error.message;
        this._end.show(this._ends(facts));
      } else {
        this._end.fail(this._words.say(error.message));
      }
    }
  }

  _idles(facts) {
    const words = this._words;
    const message = words.say(
      "The GPUs of this server have done nothing since {since}. At {moment} it is stopped.",
      { since: words.moment(facts.idleSince), moment: words.moment(facts.idleUntil) }
    );
    if (!facts.live) return { message };
    return { message, label: words.say("I'm still here"), press: () => this._here() };
  }

  async _here() {
    try {
      await this._actions.here();
      this._idle.finish(this._words.say("The GPUs stay yours."));
    } catch (error) {
      this._idle.fail(this._words.say(error.message));
    }
  }
}

/** One notification: there while its reason is, changed where what it says changes, and gone for
 * good where its reader closes it. */
class Notice {
  constructor(notification) {
    this._notification = notification;
    this._id = null;
    this._shown = "";
    this._content = null;
  }

  /**
   * Show something, or nothing any more.
   *
   * @param content - null, or `message`, and `label` and `press` where there is something to do.
   */
  show(content) {
    this._content = content;
    const shown = content ? `${content.message}\n${content.label ?? ""}` : "";
    if (shown === this._shown) return;
    this._shown = shown;
    if (!content) this._end();
    else if (this._id === null) this._tell(content.message, "warning");
    else this._update(content.message, "warning");
  }

  /** Say that all is well. Until its reason is gone the old one isn't shown again. */
  finish(message) {
    this._content = null;
    this._tell(message, "success");
    this._id = null;
  }

  /** Say that it didn't work; it can be tried again. */
  fail(message) {
    this._tell(message, "error");
  }

  _end() {
    if (this._id !== null) this._notification.dismiss(this._id);
    this._id = null;
  }

  _tell(message, type) {
    if (this._id !== null && this._update(message, type)) return;
    this._id = this._notification.emit(message, type, this._options(type));
  }

  _update(message, type) {
    return this._notification.update({ id: this._id, message, type, ...this._options(type) });
  }

  _options(type) {
    const { label, press } = this._content ?? {};
    const callback = (event) => {
      // It says in the same place what comes of it.
      event.preventDefault();
      void press();
    };
    return {
      autoClose: type === "success" ? GOOD_NEWS_MS : false,
      actions: label ? [{ label, callback, displayType: "accent" }] : [],
    };
  }
}
