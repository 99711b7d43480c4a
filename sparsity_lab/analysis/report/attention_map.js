"use strict";

// Set by showMaps.
let colors, masked, zero, source, roles, largest, views, maps = [];
const UNSEEN = -32768, LEVELS = 32767, STRIP = 6, GRAY = "#7d7d7d", LINE = 13;

function make(tag, text = "", name = "") {
  const one = document.createElement(tag);
  one.textContent = text;
  if (name) one.className = name;
  return one;
}

// Row by row what may be seen; the rest of each row comes later.
function unpacked(text, rows, keys) {
  const seen = new Int16Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const shares = new Int16Array(rows.length * keys).fill(UNSEEN);
  let from = 0;
  rows.forEach((row, index) => {
    shares.set(seen.subarray(from, from + row + 1), index * keys);
    from += row + 1;
  });
  return shares;
}

function words(share) {
  return share === 0 ? "0" : Math.abs(share) >= 0.0095 ? share.toFixed(3) : share.toExponential(1);
}

// The value of the cell under the pointer or the keys.
const told = make("div", "", "value");
told.setAttribute("role", "status");
told.hidden = true;
document.body.append(told);

function tell(canvas, text, x, y) {
  const place = canvas.getBoundingClientRect();
  told.textContent = text;
  told.hidden = false;
  const left = Math.min(place.left + x + 12, document.documentElement.clientWidth - told.offsetWidth - 4);
  told.style.left = `${Math.max(4, left)}px`;
  const top = place.top + y - told.offsetHeight - 8;
  told.style.top = `${top > 0 ? top : place.top + y + 16}px`;
}

const cut = (name) => (name.length > 12 ? `${name.slice(0, 11)}…` : name);

// The places along an axis at which a token is named: all if there is room, else those of the tokens that play a part
// and do not touch one named before.
function namedAlong(view, places, step) {
  const parts = step >= LINE ? [...Object.keys(roles), ...new Set(view.parts)] : Object.keys(roles), found = new Set();
  for (const part of parts) {
    places.forEach((place, index) => {
      if (view.parts[place] === part && [...found].every((other) => Math.abs(index - other) * step >= LINE)) found.add(index);
    });
  }
  return [...found];
}

// A large map has the names of its tokens along its sides. A small one can be chosen to become the large one.
function addMap(view, own, isSource, choose) {
  const keys = view.tokens.length, rows = view.rows.length, shares = unpacked(own.shares, view.rows, keys);
  const figure = make("figure", "", "map");
  const share = own.mass === null ? "" : `: ${own.mass.toFixed(2)}`, mass = share && `${share} on sources`;
  figure.append(make("figcaption", `layer ${own.layer}, head ${own.head}${share}`));
  const canvas = make("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  const large = !choose, keysTell = large ? "Arrow keys tell cells." : "Arrow keys tell cells, Enter enlarges the map.";
  canvas.setAttribute("aria-label", `Layer ${own.layer}, head ${own.head}${mass}, ${view.name}. ${keysTell}`);
  figure.append(canvas);
  let at = null, size = 0, side = 0;

  const x0 = () => side + STRIP + 2;
  const cellWidth = () => (size - x0()) / keys, cellHeight = () => (size - x0()) / rows;
  const label = (place) => `${cut(view.tokens[place])} ${place}`;

  function writeNames(pen, w, h, role) {
    const ink = getComputedStyle(canvas).color;
    const color = (place) => ([GRAY, roles.special].includes(role(place)) ? ink : role(place));
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const index of namedAlong(view, view.rows, h)) {
      pen.fillStyle = color(view.rows[index]);
      pen.fillText(label(view.rows[index]), side - 3, (index + 0.5) * h);
    }
    for (const key of namedAlong(view, view.tokens.map((_, place) => place), w)) {
      pen.save();
      pen.translate(x0() + (key + 0.5) * w, size - side + 3);
      pen.rotate(-Math.PI / 2);
      pen.fillStyle = color(key);
      pen.fillText(label(key), 0, 0);
      pen.restore();
    }
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    size = canvas.clientWidth;
    canvas.width = canvas.height = Math.round(size * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    side = large ? 6 + Math.max(...view.tokens.map((_, place) => pen.measureText(label(place)).width)) : 0;
    const w = cellWidth(), h = cellHeight();
    const role = (place) => roles[view.parts[place]] || GRAY;
    for (let key = 0; key < keys; key += 1) {
      pen.globalAlpha = role(key) === GRAY ? 0.35 : 1;
      pen.fillStyle = role(key);
      pen.fillRect(x0() + key * w, size - side - STRIP, w, STRIP);
    }
    view.rows.forEach((row, index) => {
      pen.globalAlpha = role(row) === GRAY ? 0.35 : 1;
      pen.fillStyle = role(row);
      pen.fillRect(side, index * h, STRIP, h);
    });
    pen.globalAlpha = 1;
    if (large) writeNames(pen, w, h, role);
    // No dark ground between cells.
    pen.fillStyle = masked;
    pen.fillRect(x0(), 0, size - x0(), rows * h);
    for (let row = 0; row < rows; row += 1) {
      // Of keys that share a pixel the largest is painted last.
      const order = Array.from({ length: keys }, (_, key) => key);
      const value = (key) => shares[row * keys + key];
      if (w < 1) order.sort((a, b) => (value(a) === UNSEEN ? -1 : Math.abs(value(a))) - (value(b) === UNSEEN ? -1 : Math.abs(value(b))));
      for (const key of order) {
        const share = value(key);
        const place = Math.min(255, Math.floor(255 * Math.sqrt(Math.abs(share) / LEVELS / largest)));
        pen.fillStyle = share === UNSEEN ? masked : share === 0 ? zero : colors[place];
        pen.fillRect(x0() + key * w, row * h, Math.max(w, 1) + 0.3, h + 0.3);
      }
    }
    for (const [row, key] of view.sources) {
      const wide = Math.max(w, 3), left = x0() + (key + 0.5) * w - wide / 2;
      for (const [color, line] of [["#ffffff", 3], [source, 1.5]]) {
        pen.strokeStyle = color;
        pen.lineWidth = line;
        pen.strokeRect(left, row * h, wide, Math.max(h, 3));
      }
    }
    if (at) {
      pen.strokeStyle = "#000000";
      pen.lineWidth = 2;
      pen.strokeRect(x0() + at[1] * w, at[0] * h, Math.max(w, 3), Math.max(h, 3));
    }
  }

  function show(row, key) {
    at = [row, key];
    paint();
    const share = shares[row * keys + key], query = view.rows[row];
    const named = (place) => `${view.tokens[place]} at ${place}`;
    const from = `${named(query)} looks at ${named(key)}`;
    const known = isSource.has(`${row},${key}`) ? "a source" : "no source";
    const text = share === UNSEEN
      ? `${named(key)} comes later than ${named(query)}: not seen`
      : `${from}: share ${words(share / LEVELS)}, distance ${query - key}, ${known}`;
    tell(canvas, text, x0() + (key + 0.5) * cellWidth(), row * cellHeight());
  }

  function hide() {
    at = null;
    told.hidden = true;
    paint();
  }

  canvas.addEventListener("pointermove", (event) => {
    const row = Math.floor(event.offsetY / cellHeight()), key = Math.floor((event.offsetX - x0()) / cellWidth());
    if (row >= 0 && row < rows && key >= 0 && key < keys) show(row, key);
    else hide();
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("blur", hide);
  if (choose) canvas.addEventListener("click", choose);
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) show(rows - 1, 0);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (event.key === "Enter" && choose) return choose();
    const [row, key] = at || [rows - 1, 0];
    const moves = {
      ArrowLeft: [row, key - 1], ArrowRight: [row, key + 1], ArrowUp: [row - 1, key], ArrowDown: [row + 1, key],
      Home: [row, 0], End: [row, Math.min(view.rows[row], keys - 1)], PageUp: [0, key], PageDown: [rows - 1, key],
    };
    if (!(event.key in moves)) return undefined;
    event.preventDefault();
    const [down, across] = moves[event.key];
    return show(Math.max(0, Math.min(rows - 1, down)), Math.max(0, Math.min(keys - 1, across)));
  });
  return { figure, paint };
}

function scale() {
  const line = make("div", "", "scale");
  const bar = make("div", "", "bar");
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `Scale: share of a row's weight from 0 to ${words(largest)}, by its root`);
  const strip = make("i");
  strip.style.background = `linear-gradient(to right, ${colors.filter((_, i) => i % 15 === 0).join(", ")})`;
  bar.append(strip, ...[0, 1 / 16, 1 / 4, 9 / 16, 1].map((part) => make("span", (part * largest).toFixed(2))));
  const key = (text, fill, edge) => {
    const one = make("span", "", "key"), patch = make("i");
    patch.style.background = fill;
    if (edge) patch.style.border = `2px solid ${edge}`;
    one.append(patch, text);
    return one;
  };
  const parts = new Set(views.flatMap((view) => view.parts));
  const strips = { planted: "source", answer: "answer", query: "query", cue: "cue", special: "special" };
  const measured = views.some((view) => view.sources.length);
  line.append(
    make("span", "share of a row's weight"), bar, measured ? "numbers: share of the scored rows on their sources" : "", key("source of the row's answer", "transparent", source),
    key("comes later: not seen", masked), key("seen, weight zero", zero),
    ...Object.entries(roles).filter(([part]) => parts.has(part)).map(([part, color]) => key(`${strips[part]} token (strips)`, color)),
  );
  return line;
}

// All maps of `numbers`: the scale in one element, the maps in another, each view under a heading of this tag.
function showMaps(numbers, scaleBox, mapsBox, heading) {
  ({ colors, masked, zero, source, roles, largest, views } = numbers);
  maps = [];
  const blocks = make("div", "", "blocks");
  for (const view of views) {
    const block = make("section", "", "block");
    const some = view.rows.length < view.tokens.length ? `, ${view.rows.length} of ${view.tokens.length} rows` : "";
    block.append(make(heading, `${view.name}${some}${view.note && `: ${view.note}`}`));
    const isSource = new Set(view.sources.map(([row, key]) => `${row},${key}`));
    const large = make("div", "", "large"), grid = make("div", "", "maps");
    let shown;
    const enlarge = (own) => {
      shown = addMap(view, own, isSource);
      large.replaceChildren(shown.figure);
    };
    const [layer, head] = numbers.head;
    enlarge(view.maps.find((own) => own.layer === layer && own.head === head));
    maps.push({ paint: () => shown.paint() });
    for (const own of view.maps.length > 1 ? view.maps : []) {
      const one = addMap(view, own, isSource, () => { enlarge(own); shown.paint(); });
      grid.append(one.figure);
      maps.push(one);
    }
    block.append(large, grid);
    blocks.append(block);
  }
  scaleBox.replaceChildren(scale());
  mapsBox.replaceChildren(blocks);
  for (const { paint } of maps) paint();
}

addEventListener("resize", () => { for (const { paint } of maps) paint(); });
