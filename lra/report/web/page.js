"use strict";
// Without scripts everything is shown in the original order; parts that need scripts are revealed here.
for (const part of document.querySelectorAll(".filter, .switch")) part.hidden = false;

for (const field of document.querySelectorAll("input[data-table]")) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    // Sorting replaces the table body, so look it up each time.
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

// The address names the open dialog, so that the link can be shared.
const open = (name) => {
  const dialog = document.getElementById(name);
  if (dialog instanceof HTMLDialogElement && !dialog.open) dialog.showModal();
};
document.addEventListener("click", (event) => {
  const link = event.target.closest("a.opens");
  if (!link) return;
  // Following the link would take the focus from it; closing the dialog returns the focus to it.
  event.preventDefault();
  history.replaceState(null, "", link.hash);
  open(link.hash.slice(1));
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname));
  // A click outside the dialog has the dialog itself as its target.
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}
window.addEventListener("hashchange", () => open(location.hash.slice(1)));
open(location.hash.slice(1));
