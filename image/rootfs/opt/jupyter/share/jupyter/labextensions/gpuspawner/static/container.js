/* What JupyterLab and Notebook load of this extension: a module federation container, by hand.
 *
 * A container is an object with `init` and `get`, and that is all JupyterLab's loader asks of it,
 * the same in every 4.x. So there is nothing to build: what is read here is what runs. The rest is
 * loaded only where there is something to show.
 *
 * ref: https://webpack.js.org/concepts/module-federation/#dynamic-remote-containers
 * ref: https://jupyterlab.readthedocs.io/en/stable/extension/extension_dev.html
 */
(() => {
  // Package -> version -> how to get it; the modules of JupyterLab's that are there once for all.
  let shared = {};
  const here = document.currentScript.src;
  const names = ["extension.js", "server.js", "packages.js", "tensorboard.js", "kept.js"];
  const [rest, server, packages, tensorboard, kept] = names.map((name) => new URL(name, here).href);

  async function take(name) {
    const versions = shared[name];
    if (!versions) return {};
    const newestFirst = Object.keys(versions).sort((a, b) =>
      b.localeCompare(a, "en", { numeric: true })
    );
    // One that is in use already counts more than a newer one: its tokens are the ones that fit.
    const version = newestFirst.find((each) => versions[each].loaded) ?? newestFirst[0];
    const module = await versions[version].get();
    return module();
  }

  async function plugins() {
    const page = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    const found = page.gpuspawner?.unseen?.length ? [await ofPackages(page.gpuspawner)] : [];
    if (page.gpuspawner?.tensorboard) found.push(...(await ofTensorBoard()));
    if (page.gpuspawner?.kept) found.push(await ofKept(page.gpuspawner.kept));
    if (!page.hubPrefix) return found;
    return [...found, await ofServer(page), await indicator(page)];
  }

  async function ofServer(page) {
    const [{ serverPlugin }, docmanager, statusbar, translation, apputils, widgets] =
      await Promise.all([
        import(server),
        take("@jupyterlab/docmanager"),
        take("@jupyterlab/statusbar"),
        take("@jupyterlab/translation"),
        take("@jupyterlab/apputils"),
        take("@lumino/widgets"),
      ]);
    return serverPlugin(page, {
      IDocumentManager: docmanager.IDocumentManager,
      IStatusBar: statusbar.IStatusBar,
      ITranslator: translation.ITranslator,
      Notification: apputils.Notification,
      Widget: widgets.Widget,
    });
  }

  async function ofKept(facts) {
    const [{ keptPlugin }, translation, widgets] = await Promise.all([
      import(kept),
      take("@jupyterlab/translation"),
      take("@lumino/widgets"),
    ]);
    return keptPlugin(facts, { ITranslator: translation.ITranslator, Widget: widgets.Widget });
  }

  async function ofTensorBoard() {
    const [{ tensorboardPlugin }, launcher, translation, apputils, services, icons, widgets] =
      await Promise.all([
        import(tensorboard),
        take("@jupyterlab/launcher"),
        take("@jupyterlab/translation"),
        take("@jupyterlab/apputils"),
        take("@jupyterlab/services"),
        take("@jupyterlab/ui-components"),
        take("@lumino/widgets"),
      ]);
    // Notebook has no launcher.
    if (!launcher.ILauncher) return [];
    const { ITranslator } = translation;
    const { Notification } = apputils;
    const { ServerConnection } = services;
    const lab = { ILauncher: launcher.ILauncher, ITranslator, Notification, ServerConnection };
    return [tensorboardPlugin({ ...lab, LabIcon: icons.LabIcon, Widget: widgets.Widget })];
  }

  async function indicator(page) {
    const [{ plugin }, statusbar, translation, apputils, widgets] = await Promise.all([
      import(rest),
      take("@jupyterlab/statusbar"),
      take("@jupyterlab/translation"),
      take("@jupyterlab/apputils"),
      take("@lumino/widgets"),
    ]);
    return plugin(page, {
      IStatusBar: statusbar.IStatusBar,
      ITranslator: translation.ITranslator,
      Notification: apputils.Notification,
      showDialog: apputils.showDialog,
      Dialog: apputils.Dialog,
      Widget: widgets.Widget,
    });
  }

  async function ofPackages(facts) {
    const [{ packagesPlugin }, translation, apputils] = await Promise.all([
      import(packages),
      take("@jupyterlab/translation"),
      take("@jupyterlab/apputils"),
    ]);
    const { ITranslator } = translation;
    return packagesPlugin(facts, { ITranslator, Notification: apputils.Notification });
  }

  window._JUPYTERLAB = window._JUPYTERLAB ?? {};
  window._JUPYTERLAB.gpuspawner = {
    init(scope) {
      shared = scope;
    },
    async get(name) {
      if (name !== "./extension") throw new Error(`gpuspawner has no module ${name}`);
      const found = await plugins();
      return () => ({ __esModule: true, default: found });
    },
  };
})();
