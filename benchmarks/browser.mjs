// Time the browser's decoder in node, on one thread: node benchmarks/browser.mjs PAGE_FOLDER FILE.glc
//
// Prints seconds of wall-clock and processor time: reading the weights, integers, image; the first run and the next.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, file] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(resolve(folder, path)));
const { ImageDecoder, IntegerDecoder, Weights } = await load("index.js");
const ort = await load("vendor/ort.wasm.bundle.min.mjs");
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync(resolve(folder, "vendor/ort-wasm-simd-threaded.wasm"));

async function timed(name, action) {
  const [start, used] = [performance.now(), process.cpuUsage()];
  const found = await action();
  const { user, system } = process.cpuUsage(used);
  const seconds = [(performance.now() - start) / 1000, (user + system) / 1e6].map((value) => value.toFixed(2));
  console.log(`${name.padEnd(10)} ${seconds[0]} s, processor ${seconds[1]} s`);
  return found;
}

const [{ weights: name, graphs }] = JSON.parse(readFileSync(resolve(folder, "models/index.json")));
const read = (path) => new Uint8Array(readFileSync(resolve(folder, "models", path)));
const data = new Uint8Array(readFileSync(file));
const [integers, images] = await timed("loading", async () => {
  const weights = new Weights(read(name));
  const models = Object.fromEntries(Object.entries(graphs).map(([key, path]) => [key, read(path)]));
  return [new IntegerDecoder(weights), await ImageDecoder.create(ort, weights, models)];
});
for (let run = 0; run < 2; run++) {
  const decoded = await timed("integers", () => integers.decode(data));
  await timed("image", () => images.decode(decoded));
}
console.log(`memory     ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB at most`);
