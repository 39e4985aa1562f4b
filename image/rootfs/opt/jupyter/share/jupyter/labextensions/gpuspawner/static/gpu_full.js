/* Says why a GPU's memory ran out, when a kernel shows that it did. */

import { Notice } from "./notice.js";
import { gigabytes } from "./words.js";

// What PyTorch, CuPy, Numba, JAX and TensorFlow say of a GPU's memory.
export const RAN_OUT = new RegExp(
  [
    "CUDA out of memory",
    "CUDA error: out of memory",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cupy\\S*OutOfMemoryError",
    "RESOURCE_EXHAUSTED: .{0,200}(out of memory|allocat)",
    "ResourceExhaustedError.{0,200}(OOM|allocat)",
  ].join("|"),
  "is"
);
// A loop that tries again and again is answered once in a while.
const PAUSE_MS = 10_000;
const LONGEST_ERROR = 20_000;
// A notification has 140 characters, so a notebook's name isn't shown whole.
const LONGEST_NAME = 20;
const FULL = 0.9;

export class GpuFull {
  /**
   * @param app - JupyterLab's application.
   * @param lab - the parts of JupyterLab that are needed: `Notification`.
   * @param words - the reader's language.
   * @param channel - to the server, which looks.
   */
  constructor(app, lab, words, channel) {
    this._app = app;
    this._lab = lab;
    this._words = words;
    this._channel = channel;
    this._followed = new WeakSet();
    // Kernel -> when it was asked about last, and its notice.
    this._asked = new Map();
    this._notices = new Map();
  }

  /** Follow what notebooks and consoles show from now on. */
  start() {
    const look = () => this._look();
    // Not every application has both.
    this._app.shell.currentChanged?.connect(look);
    this._app.shell.layoutModified?.connect(look);
    void this._app.restored.then(look);
    this._channel.listen(({ gpu_full: facts }) => {
      if (facts) this._show(facts);
    });
  }

  _look() {
    for (const { sessionContext } of this._app.shell.widgets("main")) {
      if (!sessionContext || this._followed.has(sessionContext)) continue;
      this._followed.add(sessionContext);
      sessionContext.iopubMessage?.connect((_, message) => this._heard(sessionContext, message));
    }
  }

  _heard(sessionContext, { header, content }) {
    const error =
      header.msg_type === "error"
        ? `${content.ename}: ${content.evalue}`
        : header.msg_type === "stream" && content.name === "stderr"
          ? content.text
          : "";
    const kernel = sessionContext.session?.kernel?.id;
    if (!error || !kernel || !RAN_OUT.test(error)) return;
    if (performance.now() - (this._asked.get(kernel) ?? -Infinity) < PAUSE_MS) return;
    this._asked.set(kernel, performance.now());
    this._channel.tell({ do: "explain", kernel, error: error.slice(-LONGEST_ERROR) });
  }

  _show(facts) {
    const notice = this._notices.get(facts.kernel) ?? new Notice(this._lab.Notification);
    this._notices.set(facts.kernel, notice);
    const content = { message: sentence(this._words, facts) };
    const panel = "running:show-panel";
    if (facts.others.length && this._app.commands.hasCommand(panel)) {
      content.label = this._words.say("Running kernels");
      content.press = () => this._app.commands.execute(panel);
    }
    notice.show(null); // once closed, it is shown again for what is new
    notice.show(content);
  }
}

/** Return why, within the 140 characters that JupyterLab shows. */
export function sentence(words, { total, free, own, asked, others, others_hold: rest }) {
  const amount = (bytes) => (bytes === null ? "" : gigabytes(bytes / 2 ** 20));
  const names = others.length
    ? short(others[0]) + (others.length > 1 ? ` +${others.length - 1}` : "")
    : "";
  const values = { names, total: amount(total), own: amount(own) };
  Object.assign(values, { free: amount(free), asked: amount(asked), rest: amount(rest) });
  const isFull = total !== null && free !== null && free < (1 - FULL) * total;
  if (total === null) {
    return words.say(
      "The GPU's memory was full. Use smaller batches, or shut down other kernels that are on it."
    );
  }
  if (names) {
    return own === null || rest === null
      ? words.say(
          "The GPU's {total} GB are full, and {names} is on it too. Shut that down, or use smaller batches.",
          values
        )
      : words.say(
          "The GPU's {total} GB are full: {own} GB here, {rest} GB {names}. Shut that down, or use smaller batches.",
          values
        );
  }
  if (asked !== null && free !== null && !isFull) {
    return words.say(
      "The GPU's memory doesn't suffice: {asked} GB more were asked for, {free} of {total} GB are free. Use smaller batches.",
      values
    );
  }
  return own === null
    ? words.say("The GPU's {total} GB are full. Use smaller batches, or restart the kernel.", values)
    : words.say(
        "The GPU's {total} GB are full, {own} GB by this kernel alone. Use smaller batches, or restart it.",
        values
      );
}

function short(name) {
  return name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME - 1)}…` : name;
}
