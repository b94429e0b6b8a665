// The page: sends photos to the server and shows the results, which are kept in this tab only.

import { zip } from "./zip.js";

const CONCURRENT = 3; // requests
const ATTEMPTS = 6; // if the server is busy
const PREVIEW = 640; // longest side of the preview of a threshold, pixels
const SPECKS = 0.005; // share of a photo
const SOFTNESS = 0.35; // of a cut-out's edge, as in purinet_jax/prediction/cutouts.py

const find = (id) => document.getElementById(id);
const root = document.documentElement;
const cards = new Set();
const names = { cutout: "cut-out", map: "map", mask: "mask", overlay: "overlay", attention: "attention panel" };
let limits = null;
let token = "";
let dragging = 0;

const FINAL = [400, 404, 413, 415, 431]; // statuses that trying again does not change

class Refused extends Error {} // trying again does not help

// ---- settings -------------------------------------------------------------------------------------------------------

const kind = () => document.querySelector("input[name=kind]:checked").value;
const threshold = () => Number(find("threshold").value);

function background() {
  const chosen = document.querySelector("input[name=background]:checked").value;
  return kind() !== "cutout" ? "" : chosen === "custom" ? find("colour").value : chosen;
}

/** The path of the request for the shown result; a colour is shown behind it by CSS. */
function path() {
  const query = new URLSearchParams();
  if (kind() === "cutout" || kind() === "mask") query.set("threshold", threshold());
  if (background() === "blur") query.set("background", "blur");
  if (kind() === "cutout" && find("matting").checked) query.set("matting", "true");
  if (kind() !== "attention" && find("specks").checked) query.set("min_area", SPECKS);
  return `${kind()}?${query}`.replace(/\?$/, "");
}

// ---- the server -----------------------------------------------------------------------------------------------------

const waiting = []; // functions that start a request
let running = 0;
let tokenGiven = null; // a promise while the page asks for a token

function next() {
  while (running < CONCURRENT && waiting.length) {
    running++;
    waiting.shift()().finally(() => {
      running--;
      next();
    });
  }
}

/** Requests a result when it is its turn; returns a Promise of its Blob. */
function predict(file, path, signal) {
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
      throw new Error("the file cannot be read, or the server does not respond");
    }
    if (response.ok) return response.blob();
    if (response.status === 401) {
      // Another token may have been given during this request.
      if (token === sent) await (tokenGiven ??= askForToken());
      continue;
    }
    const { reason } = await response.json().catch(() => ({ reason: `the server responded ${response.status}` }));
    if (FINAL.includes(response.status)) throw new Refused(reason.replace(/^image: /, ""));
    if ((response.status !== 429 && response.status !== 503) || attempt === ATTEMPTS) throw new Error(reason);
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => {
      setTimeout(resolve, 1000 * seconds * (0.75 + Math.random() / 2));
      signal.addEventListener("abort", resolve);
    });
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

// ---- a photo --------------------------------------------------------------------------------------------------------

class Card {
  constructor(file) {
    this.file = file;
    this.name = file.name || "pasted.png";
    this.results = new Map(); // kind → { path, blob, url }
    this.errors = "";
    this.map = null; // a blob, of which previews are made
    this.previews = new AbortController();
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
      split.setAttribute("aria-valuetext", `${split.value} % of the original`);
    };
    this.part("retry").onclick = () => this.refresh();
    this.part("download").onclick = () => download([this]);
    this.part("remove").onclick = () => remove([this]);
  }

  /** Requests the result of the present settings unless it is there. */
  async refresh() {
    const requested = path();
    if (this.control && this.requested === requested) return this.show(); // a colour has changed
    this.control?.abort();
    this.control = null;
    this.errors = "";
    if (this.result) return this.show();
    const control = (this.control = new AbortController());
    this.requested = requested;
    this.show();
    try {
      await this.fetch(requested, control.signal);
    } catch (error) {
      if (control.signal.aborted) return;
      this.errors = error.message;
      this.final = error instanceof Refused;
    }
    if (this.control === control) this.control = null;
    this.show();
  }

  async fetch(requested, signal) {
    if (limits && this.file.size > limits.bytes) {
      throw new Refused(`has ${megabytes(this.file.size)}; the limit is ${megabytes(limits.bytes)}`);
    }
    const blob = await predict(this.file, requested, signal);
    const [name] = requested.split("?"); // the kind
    const old = this.results.get(name);
    if (old) URL.revokeObjectURL(old.url);
    this.results.set(name, { path: requested, blob, url: URL.createObjectURL(blob) });
  }

  get result() {
    const found = this.results.get(kind());
    return found?.path === path() ? found : undefined;
  }

  /** Updates what the page shows of this photo. */
  show() {
    const [stage, before, after, split] = ["stage", "before", "after", "split"].map(this.part);
    const failed = this.errors !== "";
    const result = failed ? undefined : (this.result ?? this.results.get(kind())); // an old one rather than none
    const visible = before.complete && before.naturalWidth > 0; // browsers do not show every format
    const panels = kind() === "attention";
    if (result && after.src !== result.url) after.src = result.url;
    after.alt = `${names[kind()]} of ${this.name}`;
    after.hidden = !result;
    before.hidden = !visible || (panels && !!result);
    after.classList.toggle("over", !before.hidden);
    const comparable = !!result && visible && !panels;
    stage.classList.toggle("split-on", comparable);
    split.hidden = this.part("line").hidden = !comparable;
    if (this.result || failed) this.part("preview").hidden = true;
    const busy = !failed && !this.result;
    stage.classList.toggle("busy", busy);
    stage.hidden = failed && !visible;
    stage.setAttribute("aria-busy", busy);
    this.part("spinner").hidden = !busy || !this.part("preview").hidden;
    const under = kind() === "cutout" && !!result;
    stage.classList.toggle("checks", under && !background());
    stage.style.backgroundColor = under && background() !== "blur" ? background() : "";
    this.showError(failed);
    this.part("retry").hidden = !failed || this.final;
    this.part("download").hidden = failed;
    this.part("download").disabled = !this.result;
    const size = visible ? `${before.naturalWidth} × ${before.naturalHeight} pixels` : megabytes(this.file.size);
    this.part("facts").textContent = size;
    report();
  }

  /** Shows the error; a screen reader, which announces it, reads the photo's name first. */
  showError(failed) {
    const error = this.part("error");
    error.hidden = !failed;
    if (error.dataset.shown === this.errors) return;
    error.dataset.shown = this.errors;
    const name = document.createElement("span");
    name.className = "hidden";
    name.textContent = `${this.name}: `;
    error.replaceChildren(...(failed ? [name, this.errors] : []));
  }

  /** Shows the present threshold at once, approximately; the server's result follows when the slider rests. */
  async preview() {
    const before = this.part("before");
    const cut = kind() === "cutout";
    if (!this.map || !before.naturalWidth || this.errors || (!cut && kind() !== "mask")) return;
    const canvas = this.part("preview");
    const scale = Math.min(1, PREVIEW / Math.max(before.naturalWidth, before.naturalHeight));
    const width = Math.max(1, Math.round(before.naturalWidth * scale));
    const height = Math.max(1, Math.round(before.naturalHeight * scale));
    if (!this.small) {
      const bitmap = await createImageBitmap(this.map);
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
    const table = Uint8ClampedArray.from({ length: 256 }, (_, level) => (cut ? opacity(level) : 255 * (level >= 255 * threshold())));
    for (let i = 0; i < data.length; i += 4) {
      const value = table[saliency[i]];
      for (let c = 0; c < 3; c++) data[i + c] = cut ? colours[i + c] : value;
      data[i + 3] = cut ? value : 255;
    }
    if (this.result) return; // it has arrived meanwhile
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").putImageData(shown, 0, 0);
    canvas.hidden = false;
    this.part("after").hidden = true;
    this.part("spinner").hidden = true;
  }

  /** Returns the file to download by the present settings: its name, and a function that returns its blob. */
  output() {
    const stem = this.name.replace(/\.[^.]*$/, "") || this.name;
    const name = `${stem}_${kind()}.png`;
    const { blob } = this.result;
    if (!background() || background() === "blur") return { name, collect: async () => blob };
    const requested = `${path()}&background=${encodeURIComponent(background())}`;
    return { name, collect: () => predict(this.file, requested, new AbortController().signal) };
  }

  dispose() {
    this.control?.abort();
    this.previews.abort();
    for (const { url } of this.results.values()) URL.revokeObjectURL(url);
    URL.revokeObjectURL(this.url);
    this.element.remove();
    cards.delete(this);
  }
}

function opacity(level) {
  const middle = threshold();
  const low = Math.max(middle - SOFTNESS, 0);
  const high = Math.min(middle + SOFTNESS, 1);
  const share = level / 255 < middle ? (level / 255 - low) / (middle - low) : 1 + (level / 255 - middle) / (high - middle);
  const ramp = Math.min(Math.max(share / 2, 0), 1);
  return 255 * ramp * ramp * (3 - 2 * ramp);
}

// ---- all photos -----------------------------------------------------------------------------------------------------

function add(files) {
  find("notice").hidden = true;
  const added = [...files].map((file) => new Card(file));
  for (const card of added) {
    cards.add(card);
    find("results").append(card.element);
  }
  update();
  for (const card of added) card.refresh();
}

function remove(removed) {
  const last = removed.at(-1).element;
  const neighbour = removed.length < cards.size && (last.nextElementSibling ?? last.previousElementSibling);
  for (const card of removed) card.dispose();
  update();
  (neighbour ? neighbour.querySelector(".remove") : find("files")).focus();
}

/** Updates what depends on the settings and on how many photos there are. */
function update() {
  const some = cards.size > 0;
  root.classList.toggle("with-results", some);
  root.classList.toggle("panels", kind() === "attention");
  find("tools").hidden = !some;
  find("download-all").hidden = cards.size < 2;
  find("backgrounds").hidden = kind() !== "cutout";
  find("edges").hidden = kind() === "attention";
  find("matting-label").hidden = kind() !== "cutout";
  find("threshold-field").hidden = kind() !== "cutout" && kind() !== "mask";
  find("legend").hidden = !some || kind() !== "attention";
  find("threshold-value").textContent = threshold().toFixed(2);
  for (const card of cards) card.show();
  report();
}

let work = ""; // progress of a download, or why it failed
let collecting = false;

/** Updates the status line, which screen readers announce. */
function report() {
  const all = [...cards];
  const failed = all.filter((card) => card.errors).length;
  const busy = all.filter((card) => !card.errors && !card.result).length;
  const parts = [all.length === 1 ? "1 photo" : `${all.length} photos`];
  if (busy) parts.push(`${busy} in progress`);
  if (failed) parts.push(`${failed} failed`);
  if (!busy && failed < all.length) parts.push(`${names[kind()]}${all.length - failed > 1 ? "s" : ""} ready`);
  const text = work || (all.length ? `${parts.join(", ")}.` : "");
  if (find("status").textContent !== text) find("status").textContent = text;
  find("download-all").disabled = collecting || busy > 0 || failed === all.length;
}

async function download(chosen) {
  const archive = `purinet_${kind()}.zip`;
  const outputs = chosen.map((card) => card.output()); // before settings change
  collecting = true;
  try {
    const files = [];
    for (const { name, collect } of outputs) {
      if (chosen.length > 1) work = `Collecting ${files.length + 1} of ${chosen.length} …`;
      report();
      files.push({ name, blob: await collect() });
    }
    save(files.length === 1 ? files[0] : { name: archive, blob: await zip(distinct(files)) });
    work = "";
  } catch (error) {
    work = `Not downloaded: ${error.message}`;
  }
  collecting = false;
  report();
  work = "";
}

/** Returns the same files with distinct names. */
function distinct(files) {
  const taken = new Set();
  return files.map(({ name, blob }) => {
    let free = name;
    for (let index = 2; taken.has(free.toLowerCase()); index++) free = name.replace(/(\.[^.]*)$/, ` (${index})$1`);
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

const megabytes = (bytes) => (bytes < 1 << 20 ? `${Math.ceil(bytes / 1024)} kB` : `${Math.ceil((10 * bytes) / (1 << 20)) / 10} MB`);

// ---- events ---------------------------------------------------------------------------------------------------------

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
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else explain(event.dataTransfer.types);
});

/** Says why a drop has no files: of an image on another page, some browsers give the address only. */
function explain(types) {
  const notice = find("notice");
  notice.textContent = types.includes("text/uri-list")
    ? "Only the photo's address was dropped, and this page fetches nothing: copy the photo there and paste it here, or save it first."
    : "No photo was dropped.";
  notice.hidden = false;
}

function refresh() {
  update();
  for (const card of cards) if (!card.errors || !card.final || card.result) card.refresh();
}

for (const choice of document.querySelectorAll("input[name=kind]")) choice.addEventListener("change", refresh);
for (const choice of document.querySelectorAll("input[name=background]")) choice.addEventListener("change", refresh);
for (const id of ["matting", "specks"]) find(id).addEventListener("change", refresh);
find("colour").addEventListener("input", () => {
  document.querySelector("input[name=background][value=custom]").checked = true;
  refresh();
});

// The maps that previews are made of are requested when the slider gets the pointer or the focus.
function fetchMaps() {
  for (const card of cards) {
    const result = card.results.get("map");
    if (result?.path === "map") card.map ??= result.blob;
    if (card.map || card.errors || card.mapRequested) continue;
    card.mapRequested = true;
    predict(card.file, "map", card.previews.signal).then(
      (blob) => {
        card.map = blob;
        if (!card.result) card.preview();
      },
      () => (card.mapRequested = false),
    );
  }
}

let rest;
let frame;
find("threshold").addEventListener("pointerenter", fetchMaps);
find("threshold").addEventListener("focus", fetchMaps);
find("threshold").addEventListener("input", () => {
  fetchMaps();
  update();
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => cards.forEach((card) => card.result || card.preview()));
  clearTimeout(rest);
  rest = setTimeout(refresh, 350);
});

find("download-all").addEventListener("click", () => download([...cards].filter((card) => card.result && !card.errors)));
find("remove-all").addEventListener("click", () => remove([...cards]));

const about = await fetch("v1").then((response) => response.json(), () => null);
if (about) {
  limits = about.limits;
  const formats = ["JPEG", "PNG", "WebP", "AVIF", "HEIC", "GIF", "TIFF", "BMP"];
  const read = formats.filter((format) => about.inputs.includes(`.${format.toLowerCase()}`));
  find("files").accept += `,${about.inputs.join(",")}`;
  find("limits").textContent =
    `${read.join(", ")}; up to ${megabytes(limits.bytes)} and ${Math.floor(limits.pixels / 1e6)} megapixels each`;
  for (const choice of document.querySelectorAll("input[name=kind]")) {
    choice.closest("label").hidden = !about.kinds.includes(choice.value);
  }
}
