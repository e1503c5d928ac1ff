// Decodes files off the page's thread. Two of these run: one for the integers, one for the image.

import { ImageDecoder, IntegerDecoder, Weights } from "./index.js";

let decoder;

const actions = {
  /** Prepare for the integers of a model's files. */
  loadIntegers({ weights }) {
    decoder = new IntegerDecoder(new Weights(weights));
  },

  /** Prepare for a model's images. */
  async loadImages({ weights, graphs }) {
    const ort = await import("./vendor/ort.wasm.bundle.min.mjs");
    ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    ort.env.logLevel = "error";
    decoder = await ImageDecoder.create(ort, new Weights(weights), graphs);
  },

  integers({ file, maxPixels }, report) {
    return decoder.decode(file, { maxPixels, onPreview: report });
  },

  image({ decoded }) {
    return decoder.decode(decoded);
  },
};

// One at a time, in the order of the messages.
let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(() => run(data));
};

async function run({ id, action, ...values }) {
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  try {
    const preview = (value) => self.postMessage({ id, preview: value, seconds: seconds() });
    const result = await actions[action](values, preview);
    self.postMessage({ id, result, seconds: seconds() });
  } catch (error) {
    self.postMessage({ id, error: { name: error.name, message: error.message ?? String(error) } });
  }
}
