// Says beside a form of reserved hours how many people its slots seat. The words come from the server,
// and without this file the form is the same.

const SLOTS = { least: 2, most: 64 };

function wholeNumber(text) {
  return /^[0-9]{1,6}$/.test(text.trim()) ? Number(text) : 0;
}

for (const place of document.querySelectorAll("output[data-seats]")) {
  const fields = place.closest("form").elements;
  const say = () => {
    const slots = wholeNumber(fields.slots.value);
    const seats = slots >= SLOTS.least && slots <= SLOTS.most ? slots * wholeNumber(fields.gpus.value) : 0;
    // Other kinds aren't divided: the hub would refuse it.
    const words = seats && fields.kind.value === "gpu" ? place.dataset.seats.replace("{}", seats) : "";
    // What hasn't changed isn't read aloud anew.
    if (place.textContent !== words) place.textContent = words;
  };
  for (const name of ["gpus", "kind", "slots"]) fields[name].addEventListener("input", say);
  say();
}
