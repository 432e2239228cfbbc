"use strict";
// Without scripts all is there, but in the order of the tables; what needs them is shown by them.
for (const part of document.querySelectorAll(".filter, .switch")) part.hidden = false;

for (const field of document.querySelectorAll("input[data-table]")) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    // Sorting puts another body in the place of this one.
    const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    const output = field.closest(".filter").querySelector("output");
    const all = `${rows.length} row${rows.length === 1 ? "" : "s"}`;
    output.value = words.length ? `${shown} of ${all}` : all;
  });
}

const published = document.getElementById("published-switch");
published?.addEventListener("change", () => {
  for (const part of document.querySelectorAll(".published")) part.hidden = !published.checked;
});

// The address names what is open, so that it can be sent to somebody.
const open = (name) => {
  const dialog = document.getElementById(name);
  if (dialog instanceof HTMLDialogElement && !dialog.open) dialog.showModal();
};
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.opens");
  if (!link) return;
  // To follow the link would take the focus from it, to which closing gives it back.
  event.preventDefault();
  history.replaceState(null, "", link.hash);
  open(link.hash.slice(1));
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname));
  // What is outside the dialog is the dialog itself to a click.
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
window.addEventListener("hashchange", () => open(location.hash.slice(1)));
open(location.hash.slice(1));
