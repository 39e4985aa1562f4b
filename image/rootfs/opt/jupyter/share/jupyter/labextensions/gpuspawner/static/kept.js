/* Says on each launcher what of this server's files outlasts it. */

import { element } from "./panel.js";
import { widget } from "./place.js";
import { Words } from "./words.js";

/**
 * Return the plugin.
 *
 * @param kept - `home`, whether all of the user's home is kept, `folders`, what else is, and
 *   `on_one_machine`, whether a server on another machine doesn't have them.
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function keptPlugin(kept, lab) {
  return {
    id: "gpuspawner:kept",
    description: "Says on the launcher what is kept when the server stops",
    autoStart: true,
    optional: [lab.ITranslator].filter(Boolean),
    activate: (app, translator) => {
      const words = new Words(translator ?? null);
      const seen = new WeakSet();
      const look = () => {
        for (const tab of app.shell.widgets("main")) {
          if (seen.has(tab) || !tab.contentHeader || !tab.content?.hasClass?.("jp-Launcher")) continue;
          seen.add(tab);
          const line = element("p", { class: "gpuspawner-kept" }, keptWords(words, kept));
          tab.contentHeader.addWidget(widget(lab, `kept-${tab.id}`, line));
        }
      };
      // Notebook has no launcher.
      app.shell.layoutModified?.connect(look);
      void app.restored.then(look);
    },
  };
}

/** Return what is kept as a sentence. */
export function keptWords(words, { home, folders, on_one_machine: apart }) {
  if (!home && !folders.length) {
    return words.say("Nothing is kept when this server stops. Download what you need before.");
  }
  const named = [...(home ? [words.say("your home (~)")] : []), ...folders];
  const listed = named.join(words.say(", "));
  const line = home
    ? words.say(
        "Kept when this server stops: {folders}. Gone then: everything else, such as /tmp and what apt installs.",
        { folders: listed }
      )
    : words.say(
        "Kept when this server stops: {folders}. Gone then: everything else, also the rest of your home and what pip installs.",
        { folders: listed }
      );
  if (!apart) return line;
  const where = words.say(
    "Your files are on the machine of this server: with a server on another machine you don't see them."
  );
  return `${line} ${where}`;
}
