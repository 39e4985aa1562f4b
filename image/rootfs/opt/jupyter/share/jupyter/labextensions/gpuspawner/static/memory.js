/* The server's memory in the status bar: how much of its limit is used. */

import { gigabytes } from "./words.js";

// From which part of the limit on it is shown as a warning.
const NEARLY = 0.9;

export class MemoryItem {
  /** @param words - the reader's language. */
  constructor(words) {
    this._words = words;
    this.node = document.createElement("div");
    this.node.className = "gpuspawner-item gpuspawner-quiet";
    this.node.hidden = true;
    this.node.title = words.say("What programs in this server use; at the limit one of them is killed");
  }

  /**
   * Show it.
   *
   * @param memory - `used` and `limit`, in bytes; a limit of null is none.
   */
  show({ used, limit }) {
    const nearly = limit !== null && used >= NEARLY * limit;
    const amounts = { used: amount(used), total: amount(limit ?? 0) };
    const text =
      limit === null
        ? this._words.say("Memory {used} GB", amounts)
        : nearly
          ? this._words.say("Memory {used} of {total} GB, nearly full", amounts)
          : this._words.say("Memory {used} of {total} GB", amounts);
    this.node.hidden = false;
    this.node.classList.toggle("gpuspawner-soon", nearly);
    if (this.node.textContent !== text) this.node.textContent = text;
  }
}

function amount(bytes) {
  return gigabytes(bytes / 2 ** 20);
}
