/* The warnings before a server's end, for idle GPUs, for a shared GPU's memory and for GPUs that
 * fail, as JupyterLab's notifications. */

import { Refusal } from "./hub.js";
import { Notice } from "./notice.js";
import { gigabytes, WAITED_FOR } from "./words.js";

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
    this._memory = new Notice(notification);
    this._process = new Notice(notification);
    this._stop = new Notice(notification);
    this._ended = new Notice(notification);
    this._failed = new Notice(notification);
    this._notification = notification;
    // The ids of the messages that were shown. Each stays until its reader closes it.
    this._told = new Set();
    this._actions = actions;
    this._refusal = "";
  }

  /** Show what a lease gives reason to, and take back what it doesn't any more. */
  show(facts) {
    if (!facts.endsSoon) this._refusal = "";
    this._end.show(facts.endsSoon && !facts.stop && !facts.ended ? this._ends(facts) : null);
    this._stop.show(facts.stop ? { message: this._words.stops(facts.stop) } : null);
    this._ended.show(facts.ended ? { message: this._words.ended(facts.ended) } : null);
    this._failed.show(facts.failed?.length ? { message: this._fails(facts.failed) } : null);
    this._idle.show(facts.idleUntil === null ? null : this._idles(facts));
    const memory = facts.ended ? null : facts.memory;
    this._memory.show(memory?.next && memory.at !== null ? this._takesTooMuch(memory) : null);
    this._process.show(memory?.ended ? { message: processEnded(this._words, memory) } : null);
  }

  /** Show each message that is new. */
  tell(messages) {
    for (const { id, text } of messages) {
      if (this._told.has(id)) continue;
      this._told.add(id);
      const message = this._words.say("From your instructors: {text}", { text });
      this._notification.emit(message, "info", { autoClose: false });
    }
  }

  _fails([{ number }]) {
    return number === null
      ? this._words.say(
          "A GPU of this server is out of order. Save your work, and restart it: it gets another one."
        )
      : this._words.say(
          "GPU {number} of this server is out of order. Save your work, and restart it: it gets another one.",
          { number }
        );
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

  _takesTooMuch(memory) {
    return { message: takesTooMuch(this._words, memory) };
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

/** Return that a server holds too much of a shared GPU's memory, and what comes of it. */
export function takesTooMuch(words, { used, part, next, at }) {
  const values = { used: gigabytes(used), part: gigabytes(part), moment: words.moment(at) };
  return next === "end"
    ? words.say(
        "This server holds {used} GB of a shared GPU, its part is {part} GB. At {moment} its largest process is ended.",
        values
      )
    : words.say(
        "This server holds {used} GB of a shared GPU, its part is {part} GB. At {moment} it is stopped: save your work.",
        values
      );
}

/** Return which process was ended for that. */
export function processEnded(words, { part, ended: { process, held, at } }) {
  return words.say(
    "{process} was ended at {moment}: it held {held} GB of a shared GPU, and this server's part is {part} GB.",
    { process, held: gigabytes(held), part: gigabytes(part ?? 0), moment: words.moment(at) }
  );
}
