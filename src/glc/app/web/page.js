// The page: opens files that are dropped or chosen, and shows the image.

import { GlcError, parse } from "./index.js";

const MAX_PIXELS = 4_000_000; // takes a minute and 1.4 GB, of the 4 GB that WebAssembly has
const find = (id) => document.getElementById(id);

/** A worker whose messages have answers. */
class Remote {
  constructor() {
    this.calls = new Map();
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data: { id, preview, result, error, seconds } }) => {
      const { resolve, reject, onPreview } = this.calls.get(id);
      if (preview) return onPreview?.(preview, seconds);
      this.calls.delete(id);
      if (error) reject(Object.assign(new Error(error.message), { name: error.name }));
      else resolve({ result, seconds });
    };
    this.worker.onerror = (event) => this.calls.forEach(({ reject }) => reject(new Error(event.message)));
  }

  call(action, values, onPreview) {
    const id = crypto.getRandomValues(new Uint32Array(1))[0];
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject, onPreview });
      this.worker.postMessage({ id, action, ...values });
    });
  }
}

/** A model's two workers, loaded when a file first needs them. */
class Model {
  constructor(entry) {
    Object.assign(this, entry);
  }

  load() {
    this.loading ??= this.start().catch((error) => {
      this.loading = undefined;
      throw error;
    });
    return this.loading;
  }

  async start() {
    const names = Object.keys(this.graphs);
    const files = [this.weights, ...names.map((name) => this.graphs[name])];
    const [weights, ...graphs] = await Promise.all(files.map((file) => fetchBytes(`models/${file}`)));
    await check(this.weights, weights, this.sha256);
    this.coder = new Remote();
    this.painter = new Remote();
    await Promise.all([
      this.coder.call("loadIntegers", { weights }),
      this.painter.call("loadImages", {
        weights,
        graphs: Object.fromEntries(names.map((name, k) => [name, graphs[k]])),
      }),
    ]);
  }
}

async function fetchBytes(path) {
  const answer = await fetch(new URL(path, import.meta.url));
  if (!answer.ok) throw new GlcError("Error", `${path}: cannot be loaded (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Check a digest, where the browser can: it needs HTTPS, or this machine as the server. */
async function check(path, bytes, sha256) {
  if (!crypto.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== sha256) throw new GlcError("WeightsError", `${path}: damaged; reload the page`);
}

const models = fetchBytes("models/index.json").then((bytes) =>
  JSON.parse(new TextDecoder().decode(bytes)).map((entry) => new Model(entry)),
);
models.then(([first]) => first.load()).catch(() => {}); // a file that needs it reports the error

let latest = 0;

async function open(file) {
  const turn = ++latest;
  const current = () => turn === latest;
  find("result").hidden = true;
  find("error").textContent = "";
  find("status").textContent = `${file.name}: reading`;
  try {
    const data = new Uint8Array(await file.arrayBuffer());
    const header = parse(data, MAX_PIXELS);
    const known = await models;
    const model = known.find(({ fingerprint }) => fingerprint.startsWith(header.fingerprint));
    if (!model) {
      const names = known.map(({ name, fingerprint }) => `${name} (${fingerprint.slice(0, 8)})`).join(", ");
      throw new GlcError(
        "WrongWeightsError",
        `encoded with other weights (fingerprint ${header.fingerprint}); this page has ${names}`,
      );
    }
    if (current()) showFacts(file, data, header, model);
    find("status").textContent = "loading the model";
    await model.load();
    await decode(file, data, model, current);
  } catch (error) {
    if (!current()) return;
    find("result").hidden = true;
    find("status").textContent = "";
    find("error").textContent = `${file.name}: ${error.message}`;
  }
}

async function decode(file, data, model, current) {
  const start = performance.now();
  const seconds = () => ((performance.now() - start) / 1000).toFixed(1);
  find("status").textContent = "decoding";
  let ready = false;
  const preview = async (decoded) => {
    const { result } = await model.painter.call("image", { decoded });
    if (current() && !ready) show(result, `preview from the hyper-latent alone, after ${seconds()} s; decoding`);
  };
  const options = { file: data, maxPixels: MAX_PIXELS };
  const integers = await model.coder.call("integers", options, (decoded) => preview(decoded).catch(() => {}));
  const { result, seconds: image } = await model.painter.call("image", { decoded: integers.result });
  ready = true;
  if (!current()) return;
  const parts = `integers ${integers.seconds.toFixed(1)} s, image ${image.toFixed(1)} s`;
  show(result, `decoded in ${seconds()} s (${parts})`);
  find("status").dataset.done = "true";
  const blob = await new Promise((done) => find("image").toBlob(done, "image/png"));
  URL.revokeObjectURL(find("save").href);
  find("save").href = URL.createObjectURL(blob);
  find("save").download = `${file.name.replace(/\.glc$/i, "")}.png`;
  find("save").hidden = false;
}

function showFacts(file, data, { width, height, rateIndex }, model) {
  const facts = {
    file: `${file.name}, ${data.length.toLocaleString("en")} bytes`,
    size: `${width} × ${height} pixels`,
    "bits per pixel": ((8 * data.length) / (width * height)).toFixed(4),
    "rate index": (rateIndex / 4096).toFixed(2),
    model: `${model.name} (${model.fingerprint.slice(0, 8)})`,
  };
  find("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      row.append(term, text);
      return row;
    }),
  );
  const image = find("image");
  [image.width, image.height] = [width, height];
  find("save").hidden = true;
  delete find("status").dataset.done;
  find("result").hidden = false;
}

function show({ width, height, data }, status) {
  find("image").getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  find("status").textContent = status;
}

const drop = find("drop");
function openChosen() {
  const choose = find("choose");
  if (choose.files.length) open(choose.files[0]);
  choose.value = "";
}
find("choose").addEventListener("change", openChosen);
openChosen(); // a file that was chosen before this script had arrived
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
document.addEventListener("drop", ({ dataTransfer }) => {
  if (dataTransfer.files.length) open(dataTransfer.files[0]);
});
