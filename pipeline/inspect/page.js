"use strict";
// Shows what a span of the packed batch holds. Everything is put in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const spans = [...document.querySelectorAll(".span")];

function make(name, text, className) {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function wave(peaks) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", peaks.map((p, i) => `M${i + 0.5} ${24 - p * 23}V${24 + p * 23 + 0.5}`).join(""));
  path.setAttribute("stroke", "currentColor");
  svg.setAttribute("viewBox", `0 0 ${peaks.length} 48`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "wave");
  svg.setAttribute("aria-hidden", "true");
  svg.append(path);
  return svg;
}

function lossy(token, part, i) {
  const level = part.levels ? part.levels[i] : "-";
  if (level >= "0") {
    token.className = `heat h${level}`;
    token.title = `${part.losses[i]} nats`;
  }
  return token;
}

const contents = {
  tokens(part) {
    const box = make("div", "", "tokens");
    box.tabIndex = 0;
    part.pieces.forEach((piece, i) => box.append(lossy(make("span", piece), part, i)));
    return [box];
  },
  image(part) {
    const image = make("img");
    image.src = part.src;
    image.alt = "picture decoded from its tokens";
    return [image];
  },
  audio(part) {
    const audio = make("audio");
    audio.controls = true;
    audio.src = part.src;
    return [wave(part.peaks), audio];
  },
  note(part) {
    return [make("p", part.text, "quiet")];
  },
};

function show(button) {
  const [row, number, at] = button.dataset.at.split(" ").map(Number);
  const document_ = data.rows[row][number];
  const parts = make("div", "", "parts");
  panel.replaceChildren(make("h3", document_.key), parts);
  document_.parts.forEach((part, i) => {
    const box = make("div", "", `part of-${part.kind}${i === at ? " here" : ""}`);
    box.style.setProperty("--c", data.colours[part.modality]);
    box.append(make("h3", part.title), ...contents[part.kind](part));
    if (part.loss) box.append(make("p", part.loss, "quiet"));
    parts.append(box);
  });
  for (const other of spans) {
    other.setAttribute("aria-pressed", String(other === button));
    other.tabIndex = other === button ? 0 : -1;
  }
}

let pinned = false;
for (const button of spans) {
  button.addEventListener("click", () => { pinned = true; show(button); });
  button.addEventListener("pointerenter", () => { if (!pinned) show(button); });
  button.addEventListener("focus", () => { if (button.matches(":focus-visible")) show(button); });
  button.addEventListener("keydown", (event) => {
    if (event.key === "Escape") pinned = false;
    const next = neighbour(button, event.key);
    if (next) { event.preventDefault(); next.focus(); }
  });
}

function neighbour(button, key) {
  const i = spans.indexOf(button);
  if (key === "ArrowRight") return spans[i + 1];
  if (key === "ArrowLeft") return spans[i - 1];
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const row = Number(button.dataset.at.split(" ")[0]) + (key === "ArrowDown" ? 1 : -1);
  const x = button.getBoundingClientRect().left;
  const there = spans.filter((s) => Number(s.dataset.at.split(" ")[0]) === row);
  return there.findLast((s) => s.getBoundingClientRect().left <= x + 1) || there[0];
}

function variety(button) {
  const [row, number, at] = button.dataset.at.split(" ").map(Number);
  const parts = data.rows[row][number].parts;
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
