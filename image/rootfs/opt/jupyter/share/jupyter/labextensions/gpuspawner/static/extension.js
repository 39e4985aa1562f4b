/* The plugin: brings together what the hub says, the status bar's item and the warnings. */

import { GetGPU, givesBack, Restart } from "./get_gpu.js";
import { HomeWarning, home } from "./home.js";
import { Hub, Watch } from "./hub.js";
import { Indicator, withoutGpus } from "./indicator.js";
import { lease, messages } from "./lease.js";
import { intoStatusBar, widget } from "./place.js";
import { Warnings } from "./warnings.js";
import { Words } from "./words.js";

// How often the time that is left is written anew.
const TICK_MS = 10_000;
// How often a server without GPUs asks, and only where something limits its user's files.
const HOME_PERIOD_MS = 600_000;

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
  const files = new HomeWarning(lab, words, page.hubPrefix + page.baseUrl);
  const homePage = `${page.hubHost ?? ""}${page.hubPrefix}home`;
  const restart = new Restart(app, lab.Notification, words, hub, homePage);
  if (page.gpuspawner?.gpus === 0) {
    if (page.gpuspawner.home) {
      const seldom = new Watch(hub, () => files.show(home(hub, seldom.answer)), HOME_PERIOD_MS);
      seldom.start();
    }
    if (!hub.reachable) {
      place(app, lab, statusBar, withoutGpus(words, homePage));
      return;
    }
    const getGPU = new GetGPU(lab, words, hub, restart, homePage);
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
    const kept = home(hub, watch.answer);
    indicator.show({ ...facts, home: kept });
    warnings.show(facts);
    warnings.tell(messages(hub, watch.answer));
    files.show(kept);
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
  if (intoStatusBar(lab, statusBar, "indicator", node, 20)) return;
  // Notebook has no status bar; its header has room beside the kernel's state.
  app.shell.add(widget(lab, "indicator", node), "top", { rank: 9000 });
}
