/* Notifications of JupyterLab's that are there as long as their reason.
 *
 * JupyterLab cuts off what is longer than 140 characters.
 */

// Good news may go by itself.
const GOOD_NEWS_MS = 10_000;

/** One notification: there while its reason is, changed where what it says changes, and gone for
 * good where its reader closes it. */
export class Notice {
  /** @param notification - JupyterLab's `Notification`. */
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
