"use strict";
// Names come from files and from the user's data: they become text, never markup.
const at = id => document.getElementById(id);
const queue = [], cards = [];
let about, isWorking = false, confidence = null;

function make(parent, tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return parent.appendChild(element);
}

function addressOf(card, data, type) {
  const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
  card.addresses.push(URL.createObjectURL(new Blob([bytes], { type })));
  return card.addresses.at(-1);
}

function clear(card) {
  card.addresses.splice(0).forEach(address => URL.revokeObjectURL(address));
  card.root.replaceChildren();
}

const counted = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;
const listed = counts => counts.map(([name, number]) => `${name} ${number}`).join(", ");
const nameOf = path => path.split("/").at(-1);
const typeOf = path => ({ jpg: "image/jpeg", jpeg: "image/jpeg", webp: "image/webp" })[path.split(".").at(-1).toLowerCase()] || "image/png";

function showError(card, sentence) {
  clear(card);
  card.counts = null;
  make(card.root, "p", sentence, { class: "wrong", role: "alert" });
}

function show(card, found) {
  clear(card);
  card.counts = found.counts;
  const [[drawnPath, drawnData], ...labels] = Object.entries(found.files).filter(([path]) => !path.startsWith("crops/"));
  const drawn = addressOf(card, drawnData, typeOf(drawnPath));
  make(card.root, "img", "", { class: "drawn", src: drawn, alt: `${card.file.name} with boxes` });
  const side = make(card.root, "div");
  make(side, "h2", card.file.name);
  make(side, "p", counted(found.boxes.length, "object") + (found.counts.length ? `: ${listed(found.counts)}` : ""));
  if (found.note) make(side, "p", found.note, { class: "faint" });
  const links = make(side, "div", "", { class: "downloads" });
  make(links, "a", "Picture with boxes", { href: drawn, download: nameOf(drawnPath) });
  for (const [path, data] of labels) {
    const text = path.startsWith("labels/") ? "YOLO labels" : "VOC labels";
    make(links, "a", text, { href: addressOf(card, data, "text/plain"), download: nameOf(path) });
  }
  const names = btoa(String.fromCharCode(...new TextEncoder().encode(about.classes.join("\n") + "\n")));
  make(links, "a", "classes.txt", { href: addressOf(card, names, "text/plain"), download: "classes.txt" });
  if (found.boxes.length) showTable(make(side, "div", "", { class: "scroll", tabindex: "0" }), found.boxes);
  const crops = Object.entries(found.files).filter(([path]) => path.startsWith("crops/"));
  const cut = crops.length ? make(card.root, "div", "", { class: "cut" }) : null;
  for (const [path, data] of crops) {
    const address = addressOf(card, data, typeOf(path));
    make(make(cut, "a", "", { href: address, download: nameOf(path) }), "img", "", { src: address, alt: nameOf(path), title: nameOf(path) });
  }
}

function showTable(parent, boxes) {
  const table = make(parent, "table"), head = make(make(table, "thead"), "tr"), body = make(table, "tbody");
  for (const title of ["class", "score", "x1", "y1", "x2", "y2"]) make(head, "th", title, { scope: "col" });
  for (const [name, score, ...corners] of boxes) {
    const row = make(body, "tr");
    for (const text of [name, score.toFixed(3), ...corners]) make(row, "td", text);
  }
}

function showTotal() {
  const done = cards.filter(card => card.counts), sums = new Map();
  for (const [name, number] of done.flatMap(card => card.counts)) sums.set(name, (sums.get(name) || 0) + number);
  const counts = [...sums].sort((one, other) => other[1] - one[1]);
  const objects = counts.reduce((sum, [, number]) => sum + number, 0);
  const waiting = queue.length ? ` ${counted(queue.length, "picture")} to go.` : "";
  at("total").textContent = cards.length < 2 ? "" : `${counted(done.length, "picture")}, ${counted(objects, "object")}${counts.length ? `: ${listed(counts)}` : ""}.${waiting}`;
}

function queryOf(card) {
  const query = new URLSearchParams({ name: card.file.name });
  const boxes = [...document.querySelectorAll("#classes input")];
  if (confidence !== null) query.set("confidence", confidence);
  if (at("crops").checked) query.set("crops", "1");
  if (!boxes.every(box => box.checked)) query.set("classes", boxes.flatMap((box, number) => box.checked ? [number] : []).join(","));
  return query;
}

async function detect(card) {
  if (card.file.size > about.megabytes * 2 ** 20) {
    return showError(card, `${card.file.name} is larger than ${about.megabytes} MB; make it smaller, or use mode 'predict'.`);
  }
  let content, answer;
  try {
    content = await card.file.arrayBuffer();
  } catch {
    return showError(card, `${card.file.name} cannot be read; expected a file that is still where it was.`);
  }
  try {
    answer = await fetch(`/detect?${queryOf(card)}`, { method: "POST", body: content });
    const found = await answer.json();
    return answer.ok ? show(card, found) : showError(card, found.error);
  } catch {
    return showError(card, `${card.file.name}: no answer. Look whether predict.py still runs, and start it again.`);
  }
}

async function work() {
  if (isWorking) return;
  isWorking = true;
  while (queue.length) {
    const card = queue.shift();
    await detect(card);
    card.root.setAttribute("aria-busy", String(queue.includes(card)));
    showTotal();
  }
  isWorking = false;
}

function look(card) {
  if (!queue.includes(card)) queue.push(card);
  card.root.setAttribute("aria-busy", "true");
  work();
}

function add(files) {
  const added = [...files].map(file => ({ file, root: document.createElement("article"), addresses: [], counts: null }));
  at("results").prepend(...added.map(card => card.root));
  for (const card of added) {
    make(make(card.root, "div"), "h2", card.file.name);
    cards.push(card);
    look(card);
  }
}

function showSettings() {
  const boxes = [...document.querySelectorAll("#classes input")], shown = boxes.filter(box => box.checked);
  const [low, high] = [Math.min(...about.confidences), Math.max(...about.confidences)];
  const own = low === high ? low.toFixed(2) : `${low.toFixed(2)} to ${high.toFixed(2)}, as the class needs`;
  at("score").textContent = confidence === null ? own : Number(confidence).toFixed(2);
  at("reset").disabled = confidence === null;
  if (confidence === null) at("confidence").value = (low + high) / 2;
  at("shown").textContent = shown.length === boxes.length ? `all ${boxes.length}` : `${shown.length} of ${boxes.length}`;
}

function changed() {
  showSettings();
  cards.forEach(look);
}

function setConfidence(value) {
  confidence = value;
  changed();
}

function setAll(isShown) {
  document.querySelectorAll("#classes input").forEach(box => { box.checked = isShown; });
  changed();
}

async function start() {
  about = await (await fetch("/about")).json();
  at("limits").textContent = `${about.megabytes} MB and ${about.megapixels} million pixels`;
  at("crops").checked = about.crops;
  for (const name of about.classes) {
    const label = make(at("classes"), "label");
    make(label, "input", "", { type: "checkbox" }).checked = true;
    label.append(` ${name}`);
  }
  showSettings();
  at("files").addEventListener("change", () => { add(at("files").files); at("files").value = ""; });
  at("confidence").addEventListener("input", () => { at("score").textContent = Number(at("confidence").value).toFixed(2); });
  at("confidence").addEventListener("change", () => setConfidence(at("confidence").value));
  at("reset").addEventListener("click", () => setConfidence(null));
  at("crops").addEventListener("change", changed);
  at("classes").addEventListener("change", changed);
  at("all").addEventListener("click", () => setAll(true));
  at("none").addEventListener("click", () => setAll(false));
  // Anywhere on the page: a picture that misses the field would otherwise replace the page.
  document.addEventListener("dragover", event => { event.preventDefault(); at("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    at("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
}

start();
