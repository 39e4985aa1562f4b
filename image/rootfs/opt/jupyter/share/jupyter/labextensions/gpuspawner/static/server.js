/* The plugin for what concerns this server itself, with GPUs or without: documents that are saved at
 * its end, its memory, and that of its GPUs.
 */

import { Channel } from "./channel.js";
import { GpuFull } from "./gpu_full.js";
import { MemoryItem } from "./memory.js";
import { Notice } from "./notice.js";
import { intoStatusBar } from "./place.js";
import { Saver } from "./saver.js";
import { gigabytes, GPUS_GONE, Words } from "./words.js";

/**
 * Return the plugin.
 *
 * @param page - JupyterLab's page configuration.
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function serverPlugin(page, lab) {
  return {
    id: "gpuspawner:server",
    description: "Saves open documents when the server ends, shows its memory, and says what was too large for it",
    autoStart: true,
    requires: [lab.IDocumentManager],
    optional: [lab.IStatusBar, lab.ITranslator].filter(Boolean),
    activate: (app, documents, ...services) => {
      const [statusBar, translator] = [lab.IStatusBar, lab.ITranslator].map((token) =>
        token ? services.shift() : null
      );
      const channel = new Channel(app.serviceManager.serverSettings);
      const saver = new Saver(app, documents);
      const words = new Words(translator);
      const memory = new MemoryItem(words);
      intoStatusBar(lab, statusBar, "memory", memory.node, 21);
      channel.listen((message, answer) => saver.heard(message, answer));
      channel.listen(({ memory: amounts, killed }) => {
        if (amounts) memory.show(amounts);
        if (killed) lab.Notification.error(killedWords(words, killed), { autoClose: false });
      });
      const gone = new Notice(lab.Notification);
      channel.listen(({ gpus_gone }) => {
        if (gpus_gone) gone.show({ message: words.say(GPUS_GONE) });
      });
      if (page.gpuspawner?.gpus > 0) new GpuFull(app, lab, words, channel).start();
    },
  };
}

/** Say what was killed, within the 140 characters that JupyterLab shows. */
function killedWords(words, { notebook, process, limit, peak }) {
  const what = notebook
    ? words.say("The kernel of {name} was killed", { name: notebook.split("/").pop() })
    : process
      ? words.say("A process ({name}) was killed", { name: process })
      : words.say("A process was killed");
  const [size, most] = [limit, peak].map((bytes) => bytes && gigabytes(bytes / 2 ** 20));
  if (!size) return words.say("{what}: the machine's memory was full.", { what });
  return most
    ? words.say("{what}: the server's memory was full ({peak} of {limit} GB).", {
        what,
        peak: most,
        limit: size,
      })
    : words.say("{what}: the server's memory was full ({limit} GB).", { what, limit: size });
}
