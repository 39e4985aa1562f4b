/* Speaks with the hub's service "gpus", as its page does.
 *
 * It is asked with this page's own token, which the hub gave when its user came to this server, and
 * which may do there what `c.Spawner.oauth_client_allowed_scopes` says. No cookie is needed: no
 * other page's log-in is used, and none has to be there.
 */

const PATIENCE_MS = 10_000;
const PERIOD_MS = 20_000;
// While somebody looks at the GPUs' use.
const HURRY_MS = 5_000;
const LONGEST_MS = 600_000;

/** The hub said no; `message` is its sentence for the user. */
export class Refusal extends Error {}

/** The hub didn't answer, or something else did. */
export class Unreachable extends Error {
  constructor() {
    super("JupyterHub doesn't answer. Please try again.");
  }
}

export class Hub {
  /** @param page - JupyterLab's page configuration, with what JupyterHub adds to it. */
  constructor(page) {
    this._token = page.token;
    // Whose server this is, and its name. Hubs before 5 don't say who else may look at it.
    this.user = page.hubServerUser || page.hubUser;
    this.server = page.hubServerName ?? "";
    // Where each user has a domain, the dashboard has one too; only the hub knows which, and says it
    // to the server. Hubs that say nothing have it beside themselves.
    const beside = page.hubHost ? "" : `${page.hubPrefix.replace(/hub\/?$/, "")}services/gpus/`;
    const dashboard = page.gpuspawner?.dashboard || beside;
    // Who looks at somebody else's server can't do anything for it.
    this.reachable = Boolean(this._token && dashboard && page.hubUser === this.user);
    this.pageUrl = this.reachable ? dashboard : "";
  }

  /** Return what the service knows; `facts.status` of the dashboard says what that is. */
  async status() {
    return this._ask("GET", "status?history=false");
  }

  /** Give this server more time; return its new end. */
  async extend() {
    const { until } = await this._ask("POST", `${this._path}/extend`);
    return Date.parse(until);
  }

  /** Say that this server's idle GPUs aren't forgotten. */
  async here() {
    await this._ask("POST", `${this._path}/here`);
  }

  /** Ask for GPUs for this server while it runs without; of a kind, as `status` names them. */
  async ask(gpus, kind) {
    await this._ask("POST", `${this._path}/gpu-request`, kind ? { gpus, kind } : { gpus });
  }

  /** Withdraw that, let go what is reserved, or have read what became of it. */
  async letGo() {
    await this._ask("DELETE", `${this._path}/gpu-request`);
  }

  /** Have this server restarted with what is reserved for it. */
  async switch() {
    await this._ask("POST", `${this._path}/switch`);
  }

  /** Have this server restarted without its GPUs. */
  async giveBack() {
    await this._ask("DELETE", `${this._path}/gpus`);
  }

  get _path() {
    const user = `users/${encodeURIComponent(this.user)}`;
    return this.server ? `${user}/servers/${encodeURIComponent(this.server)}` : `${user}/server`;
  }

  async _ask(method, path, sent) {
    let answer, body;
    try {
      answer = await fetch(`${this.pageUrl}api/${path}`, {
        method,
        headers: { Authorization: `token ${this._token}` },
        body: sent && JSON.stringify(sent),
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
      body = answer.status === 204 ? {} : await answer.json();
    } catch {
      // A page instead of JSON is a log-in or the hub's "not found".
      throw new Unreachable();
    }
    if (answer.ok) return body;
    if (answer.status >= 500 || !body.message) throw new Unreachable();
    throw new Refusal(body.message);
  }
}

/** Keep asking: seldom, less often where nobody answers, and not at all while nobody looks. */
export class Watch {
  /**
   * @param hub - the hub.
   * @param changed - called after each try.
   * @param period - how often, in milliseconds.
   */
  constructor(hub, changed, period = PERIOD_MS) {
    this._hub = hub;
    this._changed = changed;
    this._usual = period;
    this._timer = 0;
    this._failures = 0;
    this._triedAt = -Infinity;
    this._period = period;
    this._asking = null;
    /** The last answer, `at`, when it came, `fresh`, whether no try failed since; null: none. */
    this.answer = null;
  }

  start() {
    if (!this._hub.reachable) return;
    document.addEventListener("visibilitychange", () => this._plan());
    this._plan();
  }

  /** Ask at once. */
  now() {
    this._triedAt = -Infinity;
    this._failures = 0;
    this._plan();
  }

  /** Ask more often, for as long as somebody looks. */
  hurry(much) {
    this._period = much ? HURRY_MS : this._usual;
    if (!this._failures) this._plan();
  }

  _plan() {
    clearTimeout(this._timer);
    if (!this._hub.reachable || document.hidden || this._asking) return;
    // By chance a little sooner or later, so that a class that came together doesn't ask together.
    const pause = Math.min(this._period * 2 ** this._failures, LONGEST_MS);
    const due = this._triedAt + pause * (0.85 + 0.3 * Math.random());
    this._timer = setTimeout(() => this._try(), Math.max(0, due - performance.now()));
  }

  async _try() {
    this._triedAt = performance.now();
    this._asking = this._hub.status();
    try {
      this.answer = { ...(await this._asking), at: Date.now(), fresh: true };
      this._failures = 0;
    } catch {
      this._failures += 1;
      if (this.answer) this.answer.fresh = false;
    }
    this._asking = null;
    this._changed();
    this._plan();
  }
}
