/* The launcher's tile for TensorBoard, on the logs of the folder that is open. */

import { widget } from "./place.js";
import { Words } from "./words.js";

const COMMAND = "gpuspawner:tensorboard";
const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 22 22"><path fill="none"
  stroke="#e8710a" stroke-width="2" d="M3 3v16h16M6 15l4-5 3 3 6-8"/></svg>`;

/**
 * Return the plugin.
 *
 * @param lab - the parts of JupyterLab that are needed; in some applications some aren't there.
 */
export function tensorboardPlugin(lab) {
  return {
    id: "gpuspawner:tensorboard",
    description: "A launcher's tile for TensorBoard",
    autoStart: true,
    requires: [lab.ILauncher],
    optional: [lab.ITranslator].filter(Boolean),
    activate: (app, launcher, translator) => {
      const words = new Words(translator ?? null);
      const title = words.say("TensorBoard");
      app.commands.addCommand(COMMAND, {
        label: title,
        caption: words.say("Training curves of the folder that is open, or of its folder runs"),
        icon: lab.LabIcon && new lab.LabIcon({ name: "gpuspawner:tensorboard", svgstr: ICON }),
        execute: ({ cwd }) => open(app, lab, words, cwd ?? ""),
      });
      launcher.add({ command: COMMAND, category: "Other", rank: 10 });
    },
  };
}

async function open(app, lab, words, path) {
  const { Notification } = lab;
  const busy = Notification.info(words.say("TensorBoard is starting…"), { autoClose: false });
  try {
    const { port, logs } = await ask(app.serviceManager.serverSettings, lab, path);
    Notification.dismiss(busy);
    show(app, lab, port, logs);
  } catch (error) {
    Notification.dismiss(busy);
    const why = String(error.message ?? error);
    Notification.error(words.say("TensorBoard doesn't start: {why}", { why }), { autoClose: false });
  }
}

async function ask(settings, { ServerConnection }, path) {
  const url = `${settings.baseUrl}gpuspawner/tensorboard`;
  const body = JSON.stringify({ path: path.replace(/^[^:/]*:/, "") });
  const answer = await ServerConnection.makeRequest(url, { method: "POST", body }, settings);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.message || answer.statusText);
  return said;
}

function show(app, lab, port, logs) {
  const name = `tensorboard-${port}`;
  const there = [...app.shell.widgets("main")].find((each) => each.id === `gpuspawner-${name}`);
  if (there) {
    app.shell.activateById(there.id);
    return;
  }
  const node = document.createElement("div");
  node.className = "jp-IFrame gpuspawner-tensorboard"; // JupyterLab lets a mouse drag across it
  const frame = document.createElement("iframe");
  frame.src = `${app.serviceManager.serverSettings.baseUrl}proxy/${port}/`;
  frame.title = "TensorBoard";
  node.append(frame);
  const made = widget(lab, name, node);
  made.title.label = "TensorBoard";
  made.title.caption = logs;
  made.title.closable = true;
  app.shell.add(made, "main");
  app.shell.activateById(made.id);
}
