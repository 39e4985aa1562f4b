/* Saves open documents when the server ends. */

/** Hand over what isn't saved when the server asks for it. */
export class Saver {
  /**
   * @param app - JupyterLab's application.
   * @param documents - its document manager.
   */
  constructor(app, documents) {
    this._app = app;
    this._documents = documents;
  }

  /** Answer a message of the server's. */
  heard(message, answer) {
    if (message.do !== "save") return;
    for (const context of this._unsaved()) {
      try {
        answer({ do: "save", document: this._document(context) });
      } catch (error) {
        console.error("gpuspawner: a document couldn't be handed over", error);
      }
    }
    answer({ do: "done" });
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
