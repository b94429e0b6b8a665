// The page: pictures in, what the server makes of them out. Nothing is kept but in this tab.

import { zip } from "./zip.js";

const AT_ONCE = 3; // requests
const ATTEMPTS = 6; // where the server is busy
const PREVIEW = 640; // longest side of what a threshold shows at once, pixels
const SOFTNESS = 0.35; // of a cut-out's edge, as in purinet_jax/prediction/cutouts.py

const find = (id) => document.getElementById(id);
const root = document.documentElement;
const cards = new Set();
const names = { cutout: "cut-out", map: "map", mask: "mask", overlay: "overlay", attention: "attention panel" };
let limits = null;
let token = "";
let dragging = 0;

class Refused extends Error {} // what people can do nothing about by trying again

// ---- settings -------------------------------------------------------------------------------------------------------

const kind = () => document.querySelector("input[name=kind]:checked").value;
const threshold = () => Number(find("threshold").value);

function ground() {
  const chosen = document.querySelector("input[name=ground]:checked").value;
  return kind() !== "cutout" ? "" : chosen === "own" ? find("colour").value : chosen;
}

/** The part of the server's address that makes the picture which is shown; a background is laid under it here. */
function wanted() {
  return kind() === "cutout" || kind() === "mask" ? `${kind()}?threshold=${threshold()}` : kind();
}

// ---- the server -----------------------------------------------------------------------------------------------------

const waiting = []; // functions that begin a request
let running = 0;
let tokenGiven = null; // a promise, while the server asks for a token

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    waiting.shift()().finally(() => {
      running--;
      next();
    });
  }
}

/** Asks for a picture when it is its turn; a Promise of its Blob. */
function ask(file, path, signal) {
  return new Promise((resolve, reject) => {
    waiting.push(() => (signal.aborted ? Promise.reject(signal.reason) : request(file, path, signal)).then(resolve, reject));
    next();
  });
}

async function request(file, path, signal) {
  for (let attempt = 1; ; attempt++) {
    let response;
    const sent = token;
    try {
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      response = await fetch(`v1/${path}`, { method: "POST", body: file, headers, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the file cannot be read, or the server does not answer");
    }
    if (response.ok) return response.blob();
    if (response.status === 401) {
      // Another may have been given while this one was on its way.
      if (token === sent) await (tokenGiven ??= askForToken());
      continue;
    }
    const { reason } = await response.json().catch(() => ({ reason: `the server answered ${response.status}` }));
    if (response.status !== 429 && response.status !== 503) throw new Refused(reason.replace(/^image: /, ""));
    if (attempt === ATTEMPTS) throw new Error(reason);
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (0.75 + Math.random() / 2)));
    signal.throwIfAborted();
  }
}

function askForToken() {
  const form = find("token-form");
  form.hidden = false;
  find("token").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      token = find("token").value.trim();
      form.hidden = true;
      tokenGiven = null;
      resolve();
    };
  });
}

// ---- a picture ------------------------------------------------------------------------------------------------------

class Card {
  constructor(file) {
    this.file = file;
    this.name = file.name || "pasted.png";
    this.pictures = new Map(); // kind → { path, blob, url }
    this.errors = "";
    this.element = find("card").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.url = URL.createObjectURL(file);
    this.element.querySelector("h2").textContent = this.name;
    this.element.setAttribute("aria-label", this.name);
    for (const button of this.element.querySelectorAll("button")) {
      button.setAttribute("aria-label", `${button.textContent} ${this.name}`);
    }
    const { before, split } = { before: this.part("before"), split: this.part("split") };
    before.onload = () => this.show();
    before.onerror = () => this.show();
    before.src = this.url;
    before.alt = this.name;
    split.setAttribute("aria-label", `Before and after, ${this.name}`);
    split.oninput = () => {
      this.part("stage").style.setProperty("--split", `${split.value}%`);
      split.setAttribute("aria-valuetext", `${split.value} % of the picture before`);
    };
    this.part("again").onclick = () => this.refresh();
    this.part("download").onclick = () => download([this]);
    this.part("remove").onclick = () => remove([this]);
  }

  /** Asks for the picture of the present settings, unless it is there. */
  async refresh() {
    this.control?.abort();
    const path = wanted();
    this.errors = "";
    if (this.pictures.get(kind())?.path === path) return this.show();
    const control = (this.control = new AbortController());
    this.show();
    try {
      await this.fetch(path, control.signal);
    } catch (error) {
      if (control.signal.aborted) return;
      this.errors = error.message;
      this.final = error instanceof Refused;
    }
    if (this.control === control) this.control = null;
    this.show();
  }

  async fetch(path, signal) {
    if (limits && this.file.size > limits.bytes) {
      throw new Refused(`has ${megabytes(this.file.size)}, and the server takes ${megabytes(limits.bytes)}`);
    }
    const blob = await ask(this.file, path, signal);
    const made = path.split("?")[0];
    const old = this.pictures.get(made);
    if (old) URL.revokeObjectURL(old.url);
    this.pictures.set(made, { path, blob, url: URL.createObjectURL(blob) });
  }

  get picture() {
    const found = this.pictures.get(kind());
    return found?.path === wanted() ? found : undefined;
  }

  /** Brings what is on the page to what there is. */
  show() {
    const [stage, before, after, split] = ["stage", "before", "after", "split"].map(this.part);
    const failed = this.errors !== "";
    const picture = failed ? undefined : (this.picture ?? this.pictures.get(kind())); // an old one rather than none
    const visible = before.complete && before.naturalWidth > 0; // browsers do not show every format
    const panels = kind() === "attention";
    if (picture && after.src !== picture.url) after.src = picture.url;
    after.alt = `${names[kind()]} of ${this.name}`;
    after.hidden = !picture;
    before.hidden = !visible || (panels && !!picture);
    after.classList.toggle("over", !before.hidden);
    const comparable = !!picture && visible && !panels;
    stage.classList.toggle("split-on", comparable);
    split.hidden = this.part("line").hidden = !comparable;
    if (this.picture || failed) this.part("preview").hidden = true;
    const busy = !failed && !this.picture;
    stage.classList.toggle("busy", busy);
    stage.hidden = failed && !visible;
    stage.setAttribute("aria-busy", busy);
    this.part("spinner").hidden = !busy || !this.part("preview").hidden;
    const under = kind() === "cutout" && !!picture;
    stage.classList.toggle("checks", under && !ground());
    stage.style.backgroundColor = under ? ground() : "";
    this.complain(failed);
    this.part("again").hidden = !failed || this.final;
    this.part("download").hidden = failed;
    this.part("download").disabled = !this.picture;
    const size = visible ? `${before.naturalWidth} × ${before.naturalHeight} pixels` : megabytes(this.file.size);
    this.part("facts").textContent = size;
    say();
  }

  /** Shows what is wrong; a screen reader, which is told of it wherever it is, hears the picture's name first. */
  complain(failed) {
    const error = this.part("error");
    error.hidden = !failed;
    if (error.dataset.shown === this.errors) return;
    error.dataset.shown = this.errors;
    const name = document.createElement("span");
    name.className = "hidden";
    name.textContent = `${this.name}: `;
    error.replaceChildren(...(failed ? [name, this.errors] : []));
  }

  /** The present threshold at once, roughly: what the server makes of it comes when the slider rests. */
  async preview() {
    const map = this.pictures.get("map");
    const before = this.part("before");
    if (!map || !before.naturalWidth || this.errors) return;
    const canvas = this.part("preview");
    const scale = Math.min(1, PREVIEW / Math.max(before.naturalWidth, before.naturalHeight));
    const width = Math.max(1, Math.round(before.naturalWidth * scale));
    const height = Math.max(1, Math.round(before.naturalHeight * scale));
    if (!this.small) {
      const bitmap = await createImageBitmap(map.blob);
      this.small = [bitmap, before].map((image) => {
        const drawing = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
        drawing.drawImage(image, 0, 0, width, height);
        return drawing.getImageData(0, 0, width, height);
      });
      bitmap.close();
    }
    const [saliency, colours] = this.small.map((image) => image.data);
    const shown = new ImageData(width, height);
    const { data } = shown;
    const cut = kind() === "cutout";
    const table = Uint8ClampedArray.from({ length: 256 }, (_, level) => (cut ? opacity(level) : 255 * (level >= 255 * threshold())));
    for (let i = 0; i < data.length; i += 4) {
      const value = table[saliency[i]];
      for (let c = 0; c < 3; c++) data[i + c] = cut ? colours[i + c] : value;
      data[i + 3] = cut ? value : 255;
    }
    if (this.picture) return; // it came meanwhile
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(shown, 0, 0);
    canvas.hidden = false;
    this.part("after").hidden = true;
    this.part("spinner").hidden = true;
  }

  /** The file to download: { name, blob }. */
  async result() {
    const stem = this.name.replace(/\.[^.]*$/, "") || this.name;
    const name = `${stem}_${kind()}.png`;
    if (!ground()) return { name, blob: this.picture.blob };
    const path = `${wanted()}&background=${encodeURIComponent(ground())}`;
    return { name, blob: await ask(this.file, path, new AbortController().signal) };
  }

  forget() {
    this.control?.abort();
    for (const { url } of this.pictures.values()) URL.revokeObjectURL(url);
    URL.revokeObjectURL(this.url);
    this.element.remove();
    cards.delete(this);
  }
}

function opacity(level) {
  const low = Math.max(threshold() - SOFTNESS, 0);
  const high = Math.min(threshold() + SOFTNESS, 1);
  const ramp = Math.min(Math.max((level / 255 - low) / (high - low), 0), 1);
  return 255 * ramp * ramp * (3 - 2 * ramp);
}

// ---- all of them ----------------------------------------------------------------------------------------------------

function add(files) {
  const added = [...files].map((file) => new Card(file));
  for (const card of added) {
    cards.add(card);
    find("pictures").append(card.element);
  }
  arrange();
  for (const card of added) card.refresh();
}

function remove(removed) {
  const last = removed.at(-1).element;
  const neighbour = removed.length < cards.size && (last.nextElementSibling ?? last.previousElementSibling);
  for (const card of removed) card.forget();
  arrange();
  (neighbour ? neighbour.querySelector(".remove") : find("files")).focus();
}

/** What depends on the settings and on how many pictures there are. */
function arrange() {
  const some = cards.size > 0;
  root.classList.toggle("with-pictures", some);
  root.classList.toggle("panels", kind() === "attention");
  find("tools").hidden = !some;
  find("download-all").hidden = cards.size < 2;
  find("grounds").hidden = kind() !== "cutout";
  find("threshold-field").hidden = kind() !== "cutout" && kind() !== "mask";
  find("legend").hidden = !some || kind() !== "attention";
  find("threshold-value").textContent = threshold().toFixed(2);
  for (const card of cards) card.show();
  say();
}

let work = ""; // what is being done for all

/** What a screen reader is told, and anybody else. */
function say() {
  const all = [...cards];
  const failed = all.filter((card) => card.errors).length;
  const busy = all.filter((card) => !card.errors && !card.picture).length;
  const parts = [all.length === 1 ? "1 picture" : `${all.length} pictures`];
  if (busy) parts.push(`${busy} being made`);
  if (failed) parts.push(`${failed} not usable`);
  if (!busy && failed < all.length) parts.push(`${names[kind()]}${all.length - failed > 1 ? "s" : ""} ready`);
  const text = work || (all.length ? `${parts.join(", ")}.` : "");
  if (find("status").textContent !== text) find("status").textContent = text;
  find("download-all").disabled = work !== "" || busy > 0 || failed === all.length;
}

async function download(chosen) {
  try {
    const files = [];
    for (const card of chosen) {
      if (chosen.length > 1) work = `Collecting ${files.length + 1} of ${chosen.length} pictures …`;
      say();
      files.push(await card.result());
    }
    save(files.length === 1 ? files[0] : { name: `purinet_${kind()}.zip`, blob: await zip(apart(files)) });
    work = "";
  } catch (error) {
    work = `Not downloaded: ${error.message}`;
    say();
    work = "";
    return;
  }
  say();
}

/** The same files, with names that differ. */
function apart(files) {
  const taken = new Set();
  return files.map(({ name, blob }) => {
    let free = name;
    for (let number = 2; taken.has(free.toLowerCase()); number++) free = name.replace(/(\.[^.]*)$/, ` (${number})$1`);
    taken.add(free.toLowerCase());
    return { name: free, blob };
  });
}

function save({ name, blob }) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const megabytes = (bytes) => (bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} kB` : `${(bytes / (1 << 20)).toFixed(0)} MB`);

// ---- what people do -------------------------------------------------------------------------------------------------

find("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
});

document.addEventListener("dragenter", () => root.classList.toggle("dragging", ++dragging > 0));
document.addEventListener("dragleave", () => root.classList.toggle("dragging", --dragging > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging = 0;
  root.classList.remove("dragging");
  add(event.dataTransfer.files);
});

function refresh() {
  arrange();
  for (const card of cards) if (!card.errors || !card.final) card.refresh();
}

for (const choice of document.querySelectorAll("input[name=kind]")) choice.addEventListener("change", refresh);
for (const choice of document.querySelectorAll("input[name=ground]")) choice.addEventListener("change", arrange);
find("colour").addEventListener("input", () => {
  document.querySelector("input[name=ground][value=own]").checked = true;
  arrange();
});

// Maps, of which thresholds are shown at once, are asked for when somebody reaches for the slider.
function fetchMaps() {
  for (const card of cards) {
    if (card.pictures.has("map") || card.errors || card.mapAsked) continue;
    card.mapAsked = true;
    card.fetch("map", new AbortController().signal).then(() => card.picture || card.preview(), () => {});
  }
}

let rest;
let frame;
find("threshold").addEventListener("pointerenter", fetchMaps);
find("threshold").addEventListener("focus", fetchMaps);
find("threshold").addEventListener("input", () => {
  fetchMaps();
  arrange();
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => cards.forEach((card) => card.picture || card.preview()));
  clearTimeout(rest);
  rest = setTimeout(refresh, 350);
});

find("download-all").addEventListener("click", () => download([...cards].filter((card) => card.picture && !card.errors)));
find("remove-all").addEventListener("click", () => remove([...cards]));

const about = await fetch("v1").then((response) => response.json(), () => null);
if (about) {
  limits = about.limits;
  find("limits").textContent =
    `JPEG, PNG, WebP, TIFF, BMP; up to ${megabytes(limits.bytes)} and ${Math.floor(limits.pixels / 1e6)} megapixels each`;
  for (const choice of document.querySelectorAll("input[name=kind]")) {
    choice.closest("label").hidden = !about.kinds.includes(choice.value);
  }
}
