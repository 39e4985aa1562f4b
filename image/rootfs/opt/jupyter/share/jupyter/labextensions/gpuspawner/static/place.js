/* Where things go in JupyterLab and Notebook. */

let styled = false;

/** Have the extension's style sheet in the page. */
function style() {
  if (styled) return;
  styled = true;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("style.css", import.meta.url).href;
  document.head.append(link);
}

/**
 * Put an item into the status bar.
 *
 * @param lab - the parts of JupyterLab that are needed: `Widget`.
 * @param statusBar - JupyterLab's; null where there is none.
 * @param name - of this item alone.
 * @param rank - the higher, the further right.
 * @returns whether there is a status bar.
 */
export function intoStatusBar(lab, statusBar, name, node, rank) {
  if (!statusBar) return false;
  statusBar.registerStatusItem(`gpuspawner:${name}`, {
    item: widget(lab, name, node),
    align: "left",
    rank,
  });
  return true;
}

/** Return a widget of an element. */
export function widget(lab, name, node) {
  style();
  const made = new lab.Widget({ node });
  made.id = `gpuspawner-${name}`;
  return made;
}
