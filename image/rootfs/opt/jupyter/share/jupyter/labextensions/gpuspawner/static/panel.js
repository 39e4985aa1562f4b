/* A button, as in the status bar, and the panel that a press on it opens. */

import { Refusal } from "./hub.js";

/** Return an element; `attributes` may be none, what comes after them goes into it. */
export function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * Do something by a button, which can't be pressed again meanwhile.
 *
 * @param said - the element that says then what came of it.
 * @param words - the reader's language.
 * @param act - may return a sentence, or throw an error with one.
 */
export async function press(button, said, words, act) {
  button.disabled = true;
  said.textContent = "";
  try {
    said.textContent = (await act()) ?? "";
  } catch (error) {
    said.textContent = error instanceof Refusal ? error.message : words.say(error.message);
  }
  button.disabled = false;
}

/** Return a button that does something by `press`. */
export function actionButton(label, said, words, act) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", () => press(button, said, words, act));
  return button;
}

export class Panel {
  /**
   * @param title - its name, in the reader's language.
   * @param said - the element in it that says what came of the last press.
   * @param parts - what is in it below the title.
   */
  constructor(title, said, ...parts) {
    this._said = said;
    /** Called with whether it is open now, whenever that changes. */
    this.onToggle = () => {};
    this.button = element("button", { type: "button", class: "gpuspawner-button" });
    const heading = element("h2", { id: "gpuspawner-title" }, title);
    this.node = element(
      "div",
      {
        id: "gpuspawner-panel",
        class: "gpuspawner-panel",
        role: "dialog",
        "aria-labelledby": heading.id,
        tabindex: "-1",
        popover: "auto",
      },
      heading,
      ...parts
    );
    document.body.append(this.node);
    // The browser opens and closes it, also by a press beside it.
    this.button.popoverTargetElement = this.node;
    this.button.setAttribute("aria-haspopup", "dialog");
    this.button.setAttribute("aria-expanded", "false");
    this.node.addEventListener("keydown", (event) => this._pressed(event));
    this.node.addEventListener("toggle", ({ newState }) => this._toggled(newState === "open"));
  }

  get isOpen() {
    return this.node.matches(":popover-open");
  }

  // What is typed into a field of the panel isn't JupyterLab's, nor is Escape, by which it would take
  // the focus.
  _pressed(event) {
    const closes = event.key === "Escape";
    if (!closes && !event.target.matches("input")) return;
    event.stopPropagation();
    if (!closes) return;
    event.preventDefault();
    this.node.hidePopover();
    this.button.focus();
  }

  _toggled(open) {
    this.button.setAttribute("aria-expanded", String(open));
    this._said.textContent = "";
    this.onToggle(open);
    if (!open) return;
    this.place();
    this.node.focus();
  }

  /** Put it beside the button: above one at the bottom, below one at the top. */
  place() {
    const at = this.button.getBoundingClientRect();
    const { style, offsetWidth } = this.node;
    style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - offsetWidth - 8))}px`;
    const below = at.top < window.innerHeight / 2;
    style.top = below ? `${at.bottom + 6}px` : "auto";
    style.bottom = below ? "auto" : `${window.innerHeight - at.top + 6}px`;
  }
}
