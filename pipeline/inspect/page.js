"use strict";
// Shows what a span of the packed batch holds, and names what is pointed at. Everything that comes
// from data is put in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const spans = [...document.querySelectorAll(".span")];
const AROUND = 8; // parts of a long document that are shown on each side of the chosen one

function make(name, text, className) {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function drawn(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

// --- pieces of text and patches of bytes

// Spaces and the signs of a line's end and a tab are seen, and are still there when copied.
function spell(element, text) {
  for (const bit of text.split(/( +|[↵→])/)) {
    if (bit.trim() && bit !== "↵" && bit !== "→") element.append(bit);
    else if (bit) element.append(make("i", bit, bit.trim() ? "sign" : "space"));
  }
  return element;
}

function nameOf(part, i) {
  const words = [];
  if (part.ids) words.push(`${part.ids[i].length > 1 ? "ids" : "id"} ${part.ids[i].join(", ")}`);
  if (part.bits) words.push(`patch ${i + 1}, its first byte ${part.bits[i]} bits`);
  if (part.levels && part.levels[i] >= "0") words.push(`${part.losses[i]} nats`);
  return words.join("; ");
}

function pieces(part) {
  const box = make("div", "", part.bits ? "tokens bits" : "tokens");
  const top = Math.max(4, ...(part.bits || []));
  part.pieces.forEach((text, i) => {
    const piece = spell(make("span"), text);
    if (part.bits) piece.style.setProperty("--e", (part.bits[i] / top).toFixed(3));
    if (part.levels && part.levels[i] >= "0") piece.className = `heat h${part.levels[i]}`;
    piece.title = nameOf(part, i);
    box.append(piece);
  });
  return box;
}

// Arrow keys step through the pieces, and the pointer chooses one; a line below says its name.
function steps(box, tip) {
  let at = -1;
  const choose = (i) => {
    if (i < 0 || i >= box.children.length) return;
    box.children[at]?.classList.remove("at");
    at = i;
    const piece = box.children[at];
    piece.classList.add("at");
    tip.textContent = `${at + 1} of ${box.children.length}: “${piece.textContent}” ${piece.title}`;
  };
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Tokens; the arrow keys step through them");
  box.addEventListener("pointerover", (event) => {
    choose([...box.children].indexOf(event.target.closest("span")));
  });
  box.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: box.children.length - 1 };
    if (!(event.key in to)) return;
    event.preventDefault();
    choose(to[event.key]);
    box.children[at]?.scrollIntoView({ block: "nearest" });
  });
}

// --- cells of a picture or an atlas

function cells(box, columns, n, name, tip) {
  const mark = make("div", "", "cell");
  const rows = Math.ceil(n / columns);
  let at = -1;
  const choose = (i) => {
    if (i < 0 || i >= n) return;
    at = i;
    mark.style.cssText = `left:${(100 * (i % columns)) / columns}%;width:${100 / columns}%;` +
      `top:${(100 * Math.floor(i / columns)) / rows}%;height:${100 / rows}%;display:block`;
    tip.textContent = name(i);
  };
  box.append(mark);
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `${count(n, "code")}; the arrow keys step through them`);
  box.addEventListener("pointermove", (event) => {
    const place = box.getBoundingClientRect();
    const column = Math.floor(((event.clientX - place.left) / place.width) * columns);
    const row = Math.floor(((event.clientY - place.top) / place.height) * rows);
    if (column >= 0 && column < columns && row >= 0) choose(row * columns + column);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? n - 1 : at < 0 ? 0 : at + step;
    if (Number.isNaN(to) || (!step && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    choose(to);
  });
}

document.querySelectorAll(".atlas").forEach((figure, number) => {
  const { columns, codes, counts } = data.atlases[number];
  const all = counts.reduce((a, b) => a + b, 0);
  const share = (i) => `${((100 * counts[i]) / all).toFixed(2)} % of all`;
  const used = (i) => (counts[i] ? `used ${count(counts[i], "time")}, ${share(i)}` : "never used");
  const name = (i) => `Code ${codes[i]}${counts.length ? `: ${used(i)}` : ""}`;
  const tip = figure.querySelector(".tip");
  tip.setAttribute("role", "status");
  cells(figure.querySelector(".cells"), columns, codes.length, name, tip);
});

// --- sound

function wave(peaks, audio) {
  const path = peaks.map((p, i) => `M${i + 0.5} ${24 - p * 23}V${24 + p * 23 + 0.5}`).join("");
  const box = drawn("svg", { viewBox: `0 0 ${peaks.length} 48`, preserveAspectRatio: "none" });
  const head = drawn("path", { d: "M0 0V48", class: "head" });
  box.setAttribute("class", "wave");
  box.setAttribute("aria-hidden", "true"); // the player below has the same controls
  box.append(drawn("path", { d: path, stroke: "currentColor" }), head);
  const follow = () => {
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    head.setAttribute("d", `M${(share * peaks.length).toFixed(2)} 0V48`);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  for (const event of ["play", "timeupdate", "seeked", "ended"]) audio.addEventListener(event, follow);
  box.addEventListener("click", (event) => {
    const place = box.getBoundingClientRect();
    if (audio.duration) {
      audio.currentTime = (audio.duration * (event.clientX - place.left)) / place.width;
    }
  });
  return box;
}

function player(part, label) {
  const audio = make("audio");
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = part.src;
  audio.setAttribute("aria-label", label);
  return [wave(part.peaks, audio), audio, ...(part.note ? [make("p", part.note, "quiet")] : [])];
}

// What stands in the page already: pieces are named, and sounds have their waveform.
for (const box of document.querySelectorAll(".tokens")) {
  box.nextElementSibling.setAttribute("role", "status");
  steps(box, box.nextElementSibling);
  for (const piece of box.children) {
    const text = piece.textContent;
    piece.textContent = "";
    spell(piece, text);
  }
}
for (const audio of document.querySelectorAll("audio[data-peaks]")) {
  audio.before(wave(audio.dataset.peaks.split(" ").map(Number), audio));
}

// --- parts of a document

// What tokens decode to, beside the original where that is at hand.
function pair(part, what, made) {
  const figures = [[part, `${what} decoded from its tokens`]];
  if (part.original) figures.push([part.original, `${what} in the source`]);
  const box = make("div", "", "pair");
  figures.forEach(([each, label], i) => {
    const figure = make("div", "", "one");
    if (part.original) figure.append(make("h4", i ? "original" : "from its tokens"));
    figure.append(...made(each, label));
    box.append(figure);
  });
  return box;
}

const contents = {
  tokens(part) {
    const box = pieces(part);
    const tip = make("p", part.note || " ", "tip");
    tip.setAttribute("role", "status");
    steps(box, tip);
    if (!part.bits) return [box, tip];
    const limit = part.limit ? ` A patch begins above ${part.limit} bits.` : "";
    const top = Math.max(4, ...part.bits).toFixed(1);
    const words = `Bars: how hard the first byte of a patch is to foretell, 0 to ${top} bits.`;
    return [box, make("p", words + limit, "quiet"), tip];
  },
  image(part) {
    const tip = make("p", " ", "tip");
    tip.setAttribute("role", "status");
    const box = pair(part, "picture", (each, label) => {
      const image = make("img");
      image.src = each.src;
      image.alt = label;
      const grid = make("div", "", each === part ? "cells" : "");
      grid.append(image);
      if (each.ids) {
        const { columns, ids } = each;
        const place = (i) => `row ${Math.floor(i / columns) + 1}, column ${(i % columns) + 1}`;
        cells(grid, columns, ids.length, (i) => `Code ${ids[i]}, ${place(i)}`, tip);
      }
      return [grid];
    });
    return part.ids ? [box, tip] : [box];
  },
  audio(part) {
    return [pair(part, "sound", player)];
  },
  note(part) {
    return [make("p", part.text, "quiet")];
  },
};

function draw(part, here) {
  const box = make("section", "", `part of-${part.kind}${here ? " here" : ""}`);
  box.style.setProperty("--c", data.colours[part.modality]);
  box.append(make("h3", part.title), ...contents[part.kind](part));
  if (part.loss) box.append(make("p", part.loss, "quiet"));
  return box;
}

let chosen = null;

function show(button) {
  const [row, number, at] = button.dataset.at.split(" ").map(Number);
  const document_ = data.rows[row][number];
  const heading = make("h3");
  heading.append(make("bdi", document_.key));
  const parts = make("div", "", "parts");
  const first = Math.max(0, at - AROUND);
  const few = document_.parts.slice(first, at + AROUND + 1);
  const after = document_.parts.length - first - few.length;
  if (first) parts.append(make("p", `${count(first, "part")} before`, "quiet more"));
  few.forEach((part, i) => parts.append(draw(part, first + i === at)));
  if (after) parts.append(make("p", `${count(after, "part")} after`, "quiet more"));
  panel.replaceChildren(heading, make("p", document_.about || "", "quiet about"), parts);
  panel.style.setProperty("--c", data.colours[document_.parts[at].modality]);
  for (const other of [chosen, button]) {
    if (!other) continue;
    other.setAttribute("aria-pressed", String(other === button));
    other.tabIndex = other === button ? 0 : -1;
  }
  chosen = button;
}

// --- choosing a span

let pinned = false;
for (const button of spans) {
  button.addEventListener("click", () => { pinned = true; show(button); });
  button.addEventListener("pointerenter", () => {
    button.title = button.getAttribute("aria-label");
    if (!pinned && button !== chosen) show(button);
  });
  button.addEventListener("focus", () => { if (button.matches(":focus-visible")) show(button); });
  button.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pinned = false;
    const next = neighbour(button, event);
    if (next) { event.preventDefault(); next.focus(); }
  });
}
if (panel) {
  panel.addEventListener("keydown", (event) => { if (event.key === "Escape") chosen.focus(); });
}

const rowOf = (button) => Number(button.dataset.at.split(" ")[0]);

function neighbour(button, { key, ctrlKey }) {
  const i = spans.indexOf(button);
  if (key === "ArrowRight") return spans[i + 1];
  if (key === "ArrowLeft") return spans[i - 1];
  const own = ctrlKey ? spans : spans.filter((s) => rowOf(s) === rowOf(button));
  if (key === "Home") return own[0];
  if (key === "End") return own[own.length - 1];
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const x = button.getBoundingClientRect().left;
  const step = key === "ArrowDown" ? 1 : -1;
  const there = spans.filter((s) => rowOf(s) === rowOf(button) + step);
  return there.findLast((s) => s.getBoundingClientRect().left <= x + 1) || there[0];
}

// The first span to show: of a document with most modalities, and no text.
function variety(button) {
  const [row, number, at] = button.dataset.at.split(" ").map(Number);
  const { parts } = data.rows[row][number];
  return new Set(parts.map((part) => part.modality)).size + (parts[at].kind === "tokens" ? 0 : 0.5);
}

if (spans.length) show(spans.reduce((a, b) => (variety(b) > variety(a) ? b : a)));

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});
