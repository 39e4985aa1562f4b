// Times as this browser's owner has them, in the shape that the server gives them. A test compares them.
function localise(node, language) {
  const now = new Date();
  for (const element of node.querySelectorAll("time[datetime]")) {
    const then = new Date(element.dateTime);
    const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    if (then.toDateString() !== now.toDateString()) Object.assign(shape, { weekday: "short", month: "short", day: "numeric" });
    if (then.getFullYear() !== now.getFullYear()) shape.year = "numeric";
    element.textContent = then.toLocaleString(language, shape);
  }
}
