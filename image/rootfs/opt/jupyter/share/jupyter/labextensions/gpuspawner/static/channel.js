/* A connection to this server, by which it tells its pages what they can't find out.
 *
 * Made once for each page. A page that was connected is told when the server ends, though the hub has
 * taken its address away by then.
 */

// How long until a connection that was lost is made anew.
const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 60_000;

export class Channel {
  /** @param settings - JupyterLab's `ServerConnection.ISettings`. */
  constructor(settings) {
    this._settings = settings;
    this._pause = FIRST_PAUSE_MS;
    this._listeners = [];
    this._connect();
  }

  /**
   * Listen.
   *
   * @param listener - called with each message, and with what answers it.
   */
  listen(listener) {
    this._listeners.push(listener);
  }

  /** Send the server a message; nothing where it isn't connected. */
  tell(message) {
    if (this._socket.readyState === this._socket.OPEN) this._socket.send(JSON.stringify(message));
  }

  _connect() {
    const { WebSocket, wsUrl } = this._settings;
    const socket = new WebSocket(`${wsUrl.replace(/\/?$/, "/")}gpuspawner/page`);
    this._socket = socket;
    const answer = (message) => socket.send(JSON.stringify(message));
    socket.addEventListener("open", () => (this._pause = FIRST_PAUSE_MS));
    socket.addEventListener("message", ({ data }) => {
      const message = JSON.parse(data);
      for (const listener of this._listeners) listener(message, answer);
    });
    socket.addEventListener("close", () => {
      setTimeout(() => this._connect(), this._pause * (0.85 + 0.3 * Math.random()));
      this._pause = Math.min(2 * this._pause, LONGEST_PAUSE_MS);
    });
  }
}
