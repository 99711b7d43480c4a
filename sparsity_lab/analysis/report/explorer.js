
// The choice: a place in each menu, one among the seeds (-1: all of them), and one among the lengths.
const { menus, seeds, lengths, arms, levels, measure, whole, colors: palette, dashes, shades, looks } =
  JSON.parse(document.getElementById("numbers").textContent);
const axes = [
  ...menus, { name: "seed", values: seeds }, { name: "length", values: lengths.map((length) => `length ${length}`) },
];
const SEED = menus.length, LENGTH = SEED + 1, MOST_LINES = 6, MOST_CELLS = 24;
const box = (id) => document.getElementById(id);
const armAt = new Map(arms.map((arm) => [arm.at.join(), arm]));
// The first choice is the arm that most others differ from in one menu alone, so that there is something to compare.
const alike = new Map(), alikeKeys = (arm) => arm.at.map((_, axis) => put(arm.at, axis, "*").join());
for (const key of arms.flatMap(alikeKeys)) alike.set(key, (alike.get(key) ?? 0) + 1);
const compared = (arm) => alikeKeys(arm).map((key) => alike.get(key)), sum = (arm) => compared(arm).reduce((a, b) => a + b, 0);
const first = arms.reduce((best, arm) => (sum(arm) > sum(best) ? arm : best));
const varied = first.at.map((_, axis) => axis).filter((axis) => compared(first)[axis] > 1);
const at = [...first.at, -1, 0];
const shown = { lines: varied[0] ?? 0, rows: varied[0] ?? 0, columns: varied[1] ?? LENGTH };
at[LENGTH] = aboutFourTimes(first);

function aboutFourTimes({ trained }) {
  const target = trained ? 4 * trained[1] : lengths[lengths.length - 1];
  const ratio = (length) => Math.abs(Math.log(length / target));
  return lengths.reduce((best, length, place) => (ratio(length) < ratio(lengths[best]) ? place : best), 0);
}

function median(values) {
  const sorted = values.slice().sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function fixed(value) {
  const text = value.toFixed(2);
  return Number(text) ? text.replace("-", "−") : text.replace("-", "");
}

// What is known at a place: the arm, its runs there, and the median over those that learned, or else over all.
function known(place) {
  const arm = armAt.get(place.slice(0, SEED).join());
  const own = arm ? arm.runs.filter((run) => place[SEED] < 0 || run.seed === place[SEED]) : [];
  const length = lengths[place[LENGTH]], runs = own.filter((run) => length in run.values);
  const learned = runs.filter((run) => run.learned !== false), judged = runs.some((run) => run.learned !== null);
  const used = learned.length ? learned : runs;
  return {
    arm, runs,
    value: used.length ? median(used.map((run) => run.values[length])) : null,
    never: runs.length > 0 && learned.length === 0,
    counts: judged ? `${learned.length} of ${runs.length} learned` : `${runs.length} not judged`,
    missing: own.length ? "not evaluated" : "not run",
  };
}

function put(place, axis, value) {
  const other = place.slice();
  other[axis] = value;
  return other;
}

// The places of an axis that are drawn: a window around the chosen one.
function windowOf(axis, most) {
  const count = axes[axis].values.length, from = Math.max(0, Math.min(at[axis] - (most >> 1), count - most));
  return Array.from({ length: Math.min(most, count) }, (_, place) => from + place);
}

// Choose values, by axis. If no run has them all, the run is shown that has these and most of the others.
function choose(changes) {
  const wanted = at.slice(), changed = [];
  for (const [axis, value] of Object.entries(changes)) wanted[axis] = value;
  if (!armAt.has(wanted.slice(0, SEED).join())) {
    const fit = arms.filter((arm) => Object.entries(changes).every(([axis, value]) => axis >= SEED || arm.at[axis] === value));
    if (!fit.length) return;
    const agreeing = (arm) => arm.at.filter((value, axis) => value === wanted[axis]).length;
    const best = fit.reduce((one, other) => (agreeing(other) > agreeing(one) ? other : one));
    best.at.forEach((value, axis) => {
      if (value !== wanted[axis]) changed.push(axes[axis].values[value]);
      wanted[axis] = value;
    });
  }
  const arm = armAt.get(wanted.slice(0, SEED).join());
  if (!arm.runs.some((run) => run.seed === wanted[SEED])) wanted[SEED] = -1;
  wanted.forEach((value, axis) => { at[axis] = value; });
  show(changed);
}

function menu(label, options, value, act) {
  const outer = make("label", label), select = make("select");
  for (const [number, text] of options) {
    const option = make("option", text);
    option.value = number;
    select.append(option);
  }
  select.value = value;
  select.addEventListener("change", () => act(Number(select.value)));
  outer.append(select);
  return outer;
}

const numbered = (values) => values.map((value, place) => [place, value]);
const names = axes.map((axis, place) => [place, axis.name]);

// Made once, so that the keyboard's place is kept.
const chosen = axes.map((axis, place) => {
  const all = place === SEED ? [[-1, "all seeds"]] : [];
  return menu(axis.name, [...all, ...numbered(axis.values)], at[place], (value) => choose({ [place]: value }));
});
box("menus").append(...chosen);
const change = (side) => (value) => { shown[side] = value; show([]); };
box("lines").append(menu("a line for each", names.slice(0, LENGTH), shown.lines, change("lines")));
box("sides").append(
  menu("rows", names, shown.rows, change("rows")), menu("columns", names, shown.columns, change("columns")),
);

function drawing(tag, attributes, text = "") {
  const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  one.textContent = text;
  return one;
}

function curves() {
  const axis = shown.lines, drawn = windowOf(axis, MOST_LINES);
  const lines = drawn.map((value) => {
    const place = put(at, axis, value), points = lengths.map((_, length) => ({ length, ...known(put(place, LENGTH, length)) }));
    return { value, points: points.filter((point) => point.value !== null), label: axes[axis].values[value] };
  }).filter((line) => line.points.length);
  const singles = axis === SEED ? [] : (known(at).arm?.runs ?? []).slice(0, 9).map((run) =>
    lengths.flatMap((length, place) => (length in run.values ? [{ length: place, value: run.values[length] }] : [])));
  const values = [...lines.flatMap((line) => line.points.map((point) => point.value)), ...singles.flat().map((point) => point.value)];
  const low = whole ? Math.min(-0.05, ...values) : Math.min(...values), high = whole ? Math.max(1.05, ...values) : Math.max(...values);
  const wide = Math.max(280, box("curves").clientWidth), height = 320, left = 46, top = 28, bottom = height - 44;
  const svg = drawing("svg", { viewBox: `0 0 ${wide} ${height}`, height, role: "img", tabindex: 0 });
  svg.setAttribute("aria-label", `${measure.label} by length. ${summary()} Left and right arrows choose a length, up and down a line.`);
  const cut = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text);
  const room = Math.min(wide * 0.4, 8 * Math.max(8, ...lines.map((line) => cut(line.label).length)));
  const right = wide - room, ends = lengths.map(Math.log), span = ends[ends.length - 1] - ends[0] || 1;
  const x = (place) => left + 8 + ((ends[place] - ends[0]) / span) * (right - left - 16);
  const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - top);
  const path = (points) => points.map((point, i) => `${i ? "L" : "M"}${x(point.length).toFixed(1)},${y(point.value).toFixed(1)}`).join("");
  const { arm } = known(at);
  if (arm?.trained) {
    const [from, to] = arm.trained.map((end) => Math.max(ends[0], Math.min(ends[ends.length - 1], Math.log(end))));
    const place = (end) => left + 8 + ((end - ends[0]) / span) * (right - left - 16);
    svg.append(drawing("rect", { x: place(from) - 4, y: top, width: place(to) - place(from) + 8, height: bottom - top, fill: "#7d7d7d", opacity: 0.15 }));
  }
  for (const [name, level] of Object.entries(levels)) {
    svg.append(drawing("path", { d: `M${left},${y(level)}H${right}`, stroke: "currentColor", "stroke-dasharray": name === "chance" ? "2 3" : "7 3", "stroke-width": 0.8 }));
  }
  const ticks = whole ? [0, 0.25, 0.5, 0.75, 1] : [0, 0.25, 0.5, 0.75, 1].map((part) => low + part * (high - low));
  for (const tick of ticks) svg.append(drawing("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, fixed(tick)));
  svg.append(drawing("path", { d: `M${left},${top}V${bottom}H${right}`, stroke: "currentColor", fill: "none", "stroke-width": 0.8 }));
  svg.append(drawing("text", { x: 0, y: 14 }, measure.label));
  let last = -99;
  lengths.forEach((length, place) => {
    if (x(place) - last < 30) return;
    last = x(place);
    svg.append(drawing("text", { x: last, y: bottom + 17, "text-anchor": "middle" }, length));
  });
  svg.append(drawing("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, "length (log scale; gray: trained)"));
  svg.append(drawing("path", { d: `M${x(at[LENGTH])},${top}V${bottom}`, stroke: "#d55e00", "stroke-width": 1.2, "stroke-dasharray": "3 2" }));
  const own = palette[at[axis] < 0 ? 0 : at[axis] % palette.length];
  for (const single of singles) svg.append(drawing("path", { d: path(single), fill: "none", stroke: own, "stroke-width": 0.8, opacity: 0.75 }));
  // The chosen line lies on top.
  const onTop = (line) => line.value === at[axis];
  for (const line of [...lines.filter((one) => !onTop(one)), ...lines.filter(onTop)]) {
    const never = line.points[0].never, color = never ? GRAY : palette[line.value % palette.length];
    const dash = never ? "2 4" : dashes[line.value % dashes.length], isChosen = onTop(line);
    svg.append(drawing("path", { d: path(line.points), fill: "none", stroke: color, "stroke-width": isChosen ? 3 : 1.6, "stroke-dasharray": dash }));
    for (const point of line.points) {
      const mark = drawing("circle", { cx: x(point.length), cy: y(point.value), r: isChosen ? 4.5 : 3.5, fill: color });
      const text = `${line.label}, length ${lengths[point.length]}: ${fixed(point.value)}, ${point.counts}`;
      mark.addEventListener("pointerenter", () => tell(svg, text, x(point.length), y(point.value)));
      mark.addEventListener("pointerleave", () => { told.hidden = true; });
      mark.addEventListener("click", () => choose({ [axis]: line.value, [LENGTH]: point.length }));
      svg.append(mark);
    }
  }
  // Labels at the ends of the lines, moved apart where they would lie on each other.
  const labels = lines.map((line) => ({ line, y: y(line.points[line.points.length - 1].value) + 4 })).sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + 14); });
  labels.slice().reverse().forEach((label, i, all) => { label.y = Math.min(label.y, i ? all[i - 1].y - 14 : bottom + 4); });
  for (const { line, y: place } of labels) {
    const weight = line.value === at[axis] ? 700 : 400;
    svg.append(drawing("text", { x: right + 6, y: place, "font-weight": weight }, cut(line.label)));
  }
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [LENGTH, -1], ArrowRight: [LENGTH, 1], ArrowUp: [axis, -1], ArrowDown: [axis, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const value = at[move[0]] + move[1];
    if (value >= 0 && value < axes[move[0]].values.length) choose({ [move[0]]: value });
    box("curves").firstChild.focus();
  });
  const more = drawn.length < axes[axis].values.length ? [make("p", `${drawn.length} of ${axes[axis].values.length} lines, around the chosen one.`, "note")] : [];
  box("curves").replaceChildren(svg, ...more);
}

// A heading that may break before a bracket.
function named(text, scope) {
  const one = make("th");
  one.append(...text.split(/(?=\()/).flatMap((part, i) => (i ? [make("wbr"), part] : [part])));
  one.scope = scope;
  return one;
}

function cells() {
  const [down, across] = [shown.rows, shown.columns].map((axis) => windowOf(axis, MOST_CELLS));
  const all = down.map((row) => across.map((column) => {
    const place = put(put(at, shown.rows, row), shown.columns, column);
    return { ...known(place), row, column, isChosen: at[shown.rows] === row && at[shown.columns] === column };
  }));
  // Without rows and columns in which nothing was run.
  const isRun = (cell) => cell.arm !== undefined, full = across.map((_, i) => all.some((line) => isRun(line[i])));
  const found = all.filter((line) => line.some(isRun)).map((line) => line.filter((_, i) => full[i]));
  const values = found.flat().filter((cell) => cell.value !== null && !cell.never).map((cell) => cell.value);
  const low = whole ? 0 : Math.min(...values), high = whole ? 1 : Math.max(...values);
  const table = make("table", "", "cells"), head = make("tr");
  const where = [shown.rows, shown.columns].includes(LENGTH) ? "" : ` at ${axes[LENGTH].values[at[LENGTH]]}`;
  box("what").textContent = `${measure.label}${where}`;
  table.setAttribute("aria-labelledby", "what");
  head.append(make("td"), ...found[0].map((cell) => named(axes[shown.columns].values[cell.column], "col")));
  table.append(head);
  for (const line of found) {
    const row = make("tr");
    row.append(named(axes[shown.rows].values[line[0].row], "row"), ...line.map((cell) => {
      const one = make("td"), button = make("button", cell.value === null ? cell.missing : fixed(cell.value), cell.never ? "unlearned" : "");
      button.type = "button";
      button.setAttribute("aria-pressed", cell.isChosen);
      button.disabled = cell.value === null;
      if (cell.value !== null) button.append(make("small", cell.counts));
      if (cell.value !== null && !cell.never) {
        const part = Math.max(0, Math.min(1, (cell.value - low) / (high - low || 1)));
        [button.style.background, button.style.color] = shades[Math.round(part * (shades.length - 1))];
      }
      button.addEventListener("click", () => {
        choose({ [shown.rows]: cell.row, [shown.columns]: cell.column });
        box("cells").querySelector('[aria-pressed="true"]')?.focus();
      });
      one.append(button);
      return one;
    }));
    table.append(row);
  }
  box("cells").replaceChildren(table);
}

function summary() {
  const here = known(at), parts = axes.slice(0, SEED).map((axis, place) => axis.values[at[place]]);
  const seed = at[SEED] < 0 ? [] : [seeds[at[SEED]]], arm = [...parts, ...seed].join(", ") || "All runs";
  if (here.value === null) return `${arm}: ${here.missing} at length ${lengths[at[LENGTH]]}.`;
  const trained = here.arm.trained ? `, ${Number((lengths[at[LENGTH]] / here.arm.trained[1]).toFixed(2))} x the longest trained one` : "";
  const what = here.runs.length > 1 ? `median ${measure.words}` : measure.words;
  return `${arm}: ${what} ${fixed(here.value)} at length ${lengths[at[LENGTH]]}${trained} (${here.counts}).`;
}

function attention() {
  const runs = (known(at).arm?.runs ?? []).filter((run) => at[SEED] < 0 || run.seed === at[SEED]);
  const run = runs.find((one) => one.map && one.learned) ?? runs.find((one) => one.map);
  for (const id of ["scale", "maps"]) box(id).replaceChildren();
  box("whose").textContent = run
    ? `Run ${run.id}, ${seeds[run.seed]}${run.learned === false ? ", which did not learn" : ""}. Point at a cell, or move with Tab and the arrow keys. A click or Enter enlarges a small map.`
    : "This page has no attention map of these runs; see the end of the page.";
  if (run) showMaps({ ...looks, ...run.map }, box("scale"), box("maps"), "h3");
  const sample = runs.find((one) => "sample" in one)?.sample;
  document.querySelectorAll(".sample").forEach((one, place) => { one.hidden = place !== sample; });
}

function show(changed) {
  told.hidden = true;
  chosen.forEach((label, axis) => { label.querySelector("select").value = at[axis]; });
  box("choice").textContent = `${changed.length ? `No run has all of that, so this is another one: ${changed.join(", ")}. ` : ""}${summary()}`;
  curves();
  cells();
  attention();
}

function fromAddress() {
  const id = location.hash.slice(1);
  for (const arm of arms) {
    const run = arm.runs.find((one) => one.id === id);
    if (run) return choose({ ...arm.at, [SEED]: run.seed });
  }
  return show([]);
}

addEventListener("hashchange", fromAddress);
addEventListener("resize", curves);
fromAddress();
