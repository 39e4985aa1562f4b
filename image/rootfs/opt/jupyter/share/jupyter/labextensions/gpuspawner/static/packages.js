/* Says that what the user has installed belongs to other image versions than the one that runs. */

import { Words } from "./words.js";

const SHOWN_MS = 15_000;

/**
 * Return the plugin.
 *
 * @param facts - `version`, the one that runs, and `unseen`, those with packages of the user's.
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function packagesPlugin({ version, unseen }, lab) {
  return {
    id: "gpuspawner:packages",
    description: "Says that the user's packages belong to another image version",
    autoStart: true,
    optional: [lab.ITranslator].filter(Boolean),
    activate: (app, translator) => {
      const words = new Words(translator ?? null);
      const said = words.say(
        "Your packages are in {versions}. This server runs {version}, without them.",
        { versions: unseen.join(", "), version }
      );
      // Not before: what shows notifications shows none from before it was there itself. Nobody waits
      // for this one.
      void app.restored.then(() => lab.Notification.info(said, { autoClose: SHOWN_MS }));
    },
  };
}
