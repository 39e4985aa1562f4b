/* Saves open documents when the server ends.
 *
 * The hub takes the server's address away before it stops it, so that a page can't save by then as it
 * does else. A connection that was made before goes on: the server asks for what isn't saved, and
 * gets it there.
 */

// How long until a connection that was lost is made anew.
const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 60_000;

/**
 * Return the plugin.
 *
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function saverPlugin(lab) {
  return {
    id: "gpuspawner:saver",
    description: "Saves open documents when the server ends",
    autoStart: true,
    requires: [lab.IDocumentManager],
    activate: (app, documents) => new Saver(app, documents).connect(),
  };
}

class Saver {
  constructor(app, documents) {
    this._app = app;
    this._documents = documents;
    this._pause = FIRST_PAUSE_MS;
  }

  connect() {
    const { WebSocket, wsUrl } = this._app.serviceManager.serverSettings;
    const socket = new WebSocket(`${wsUrl.replace(/\/?$/, "/")}gpuspawner/documents`);
    socket.addEventListener("open", () => (this._pause = FIRST_PAUSE_MS));
    socket.addEventListener("message", ({ data }) => {
      if (JSON.parse(data).do === "save") this._handOver(socket);
    });
    socket.addEventListener("close", () => {
      setTimeout(() => this.connect(), this._pause * (0.85 + 0.3 * Math.random()));
      this._pause = Math.min(2 * this._pause, LONGEST_PAUSE_MS);
    });
  }

  _handOver(socket) {
    for (const context of this._unsaved()) {
      try {
        socket.send(JSON.stringify({ do: "save", document: this._document(context) }));
      } catch (error) {
        console.error("gpuspawner: a document couldn't be handed over", error);
      }
    }
    socket.send(JSON.stringify({ do: "done" }));
  }

  /** Return the contexts of what has been changed, of this server's own files. */
  _unsaved() {
    const found = new Set();
    const { contents } = this._app.serviceManager;
    for (const widget of this._app.shell.widgets("main")) {
      const context = this._documents.contextForWidget(widget);
      const ours = context && contents.driveName(context.path) === "";
      if (ours && context.isReady && context.model.dirty && !context.model.readOnly) {
        found.add(context);
      }
    }
    return found;
  }

  // ref: JupyterLab's docregistry Context, which saves the same.
  _document(context) {
    const { type, format, last_modified } = context.contentsModel;
    const asJson = type === "notebook" || format === "json";
    const content = asJson ? context.model.toJSON() : context.model.toString();
    return { path: context.localPath, type, format, last_modified, content };
  }
}
