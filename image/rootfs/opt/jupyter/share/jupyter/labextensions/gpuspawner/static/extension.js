/* The plugin: brings together what the hub says, the status bar's item and the warnings. */

import { GetGPU, givesBack, Restart } from "./get_gpu.js";
import { Hub, Watch } from "./hub.js";
import { Indicator, withoutGpus } from "./indicator.js";
import { lease } from "./lease.js";
import { Warnings } from "./warnings.js";
import { Words } from "./words.js";

// How often the time that is left is written anew.
const TICK_MS = 10_000;

/**
 * Return the plugin.
 *
 * @param page - JupyterLab's page configuration.
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function plugin(page, lab) {
  return {
    id: "gpuspawner:plugin",
    description: "How long this server keeps its GPUs, and what they do",
    autoStart: true,
    optional: [lab.IStatusBar, lab.ITranslator].filter(Boolean),
    activate: (app, ...services) => {
      const [statusBar, translator] = [lab.IStatusBar, lab.ITranslator].map((token) =>
        token ? services.shift() : null
      );
      start(app, page, lab, statusBar, new Words(translator));
    },
  };
}

function start(app, page, lab, statusBar, words) {
  const hub = new Hub(page);
  const home = `${page.hubHost ?? ""}${page.hubPrefix}home`;
  const restart = new Restart(app, lab.Notification, words, home);
  if (page.gpuspawner?.gpus === 0) {
    if (!hub.reachable) {
      place(app, lab, statusBar, withoutGpus(words, home));
      return;
    }
    const getGPU = new GetGPU(lab, words, hub, restart, home);
    place(app, lab, statusBar, getGPU.node);
    getGPU.start();
    return;
  }
  const watch = new Watch(hub, show);
  const actions = {
    extend: () => afterwards(hub.extend()),
    here: () => afterwards(hub.here()),
  };
  const indicator = new Indicator(words, actions, hub.pageUrl);
  if (hub.reachable) indicator.add(givesBack(words, restart, hub));
  const warnings = new Warnings(lab.Notification, words, actions);

  async function afterwards(work) {
    try {
      return await work;
    } finally {
      watch.now();
    }
  }

  function show() {
    const facts = lease(hub, page.gpuspawner, watch.answer);
    indicator.show(facts);
    warnings.show(facts);
  }

  indicator.onOpen = (open) => watch.hurry(open);
  place(app, lab, statusBar, indicator.node);
  // JupyterLab finds that the server doesn't answer: the hub says why, where it was stopped.
  app.serviceManager?.connectionFailure?.connect(() => watch.now());
  show();
  setInterval(show, TICK_MS);
  watch.start();
}

function place(app, lab, statusBar, node) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("style.css", import.meta.url).href;
  document.head.append(link);
  const item = new lab.Widget({ node });
  item.id = "gpuspawner-indicator";
  if (statusBar) {
    statusBar.registerStatusItem("gpuspawner:indicator", { item, align: "left", rank: 20 });
  } else {
    // Notebook has no status bar; its header has room beside the kernel's state.
    app.shell.add(item, "top", { rank: 9000 });
  }
}
