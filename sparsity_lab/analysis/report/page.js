"use strict";

// Tables: a click on a heading, or Enter, sorts by its column; again, the other way round.
function value(row, column) {
  const text = row.cells[column].textContent.trim().replace(/−/g, "-").replace(/^≥\s*/, "");
  const found = /^-?\d+(\.\d+)?(?=$|[\s,%[])/.exec(text);
  return { text, numeric: found !== null, number: found === null ? 0 : Number(found[0]) };
}

function sort(heading) {
  const column = heading.cellIndex;
  const body = heading.closest("table").tBodies[0];
  const falls = heading.getAttribute("aria-sort") === "ascending";
  const rows = Array.from(body.rows, (row) => ({ row, key: value(row, column) }));
  rows.sort(({ key: a }, { key: b }) => {
    // What is no number, such as a dash, comes last in either order.
    if (a.numeric !== b.numeric) return a.numeric ? -1 : 1;
    const order = a.numeric ? a.number - b.number : a.text.localeCompare(b.text);
    return falls ? -order : order;
  });
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
  body.append(...rows.map(({ row }) => row));
}

for (const heading of document.querySelectorAll(".scroll > table > thead th")) {
  heading.tabIndex = 0;
  heading.title = "sort";
  heading.addEventListener("click", () => sort(heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sort(heading);
  });
}

// Curves: the value of the mark under the pointer or with the focus, beside it.
const shown = document.createElement("div");
shown.className = "value";
shown.setAttribute("role", "status");
shown.hidden = true;
document.body.append(shown);

function show(point, words) {
  const place = point.getBoundingClientRect();
  shown.textContent = words;
  shown.hidden = false;
  const left = place.left + place.width / 2 - shown.offsetWidth / 2;
  const widest = document.documentElement.clientWidth - shown.offsetWidth - 4;
  shown.style.left = `${Math.max(4, Math.min(left, widest))}px`;
  shown.style.top = `${place.top > shown.offsetHeight + 8 ? place.top - shown.offsetHeight - 4 : place.bottom + 4}px`;
}

for (const point of document.querySelectorAll("circle.point")) {
  const title = point.querySelector("title");
  const words = title.textContent;
  // Else the browser would show the same once more.
  title.remove();
  point.setAttribute("role", "img");
  point.setAttribute("aria-label", words);
  for (const name of ["pointerenter", "focus"]) point.addEventListener(name, () => show(point, words));
  for (const name of ["pointerleave", "blur"]) point.addEventListener(name, () => { shown.hidden = true; });
}
document.addEventListener("scroll", () => { shown.hidden = true; }, { capture: true, passive: true });
