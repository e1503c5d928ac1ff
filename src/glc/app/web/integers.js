// Parts 4 and 7 of docs/bitstream.md: from a file to its integers.

import { GlcError, RATE_ONE, parse } from "./bitstream.js";
import { Stack, decodeIndices, decodeIntegers } from "./entropy.js";
import { Map3, Networks } from "./networks.js";

const ORDER = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]];
const LEAST_STEP = 2048;

/** Decodes files to integers: the same ones as every other decoder. */
export class IntegerDecoder {
  /** @param {import("./weights.js").Weights} weights */
  constructor(weights) {
    this.weights = weights;
    this.networks = new Networks(weights);
  }

  /**
   * Return the header and the integers of a file.
   *
   * @param {Uint8Array} data
   * @param {object} [options]
   * @param {number} [options.maxPixels] largest accepted width x height
   * @param {(decoded: object) => void} [options.onPreview] called once z is decoded, with `y` null and as `yHat` the
   *   means that z alone predicts
   * @returns {object} header, `height` and `width` of the latent, `z` (null for an indices-map codec), `y`, and `yHat`
   *   (float32 [N][h][w]; null for an indices-map codec)
   * @throws {GlcError}
   */
  decode(data, { maxPixels, onPreview } = {}) {
    const { weights } = this;
    const header = parse(data, maxPixels);
    const own = weights.fingerprint.slice(0, 8);
    if (header.fingerprint !== own) {
      throw new GlcError("WrongWeightsError", `encoded with other weights (${header.fingerprint}); these are ${own}`);
    }
    const last = (weights.numRates - 1) * RATE_ONE;
    if (header.rateIndex > last || (weights.mapsIndices && header.rateIndex % RATE_ONE)) {
      throw new GlcError("CorruptFileError", `corrupt: there is no rate index ${header.rateIndex / RATE_ONE}`);
    }
    const f = weights.downsampling;
    const stride = weights.mapsIndices ? f : 4 * f;
    const [height, width] = [header.height, header.width].map((side) => (Math.ceil(side / stride) * stride) / f);
    const stack = new Stack(header.payload);
    let found;
    if (weights.mapsIndices) {
      const size = weights.model.coder.sizes[header.rateIndex / RATE_ONE];
      found = { z: null, y: decodeIndices(stack, height * width, size), yHat: null };
    } else {
      const z = this.decodeZ(stack, height / 4, width / 4, header.rateIndex);
      const zHat = this.networks.zHat(z, height / 4, width / 4);
      const prior = this.networks.prior(zHat);
      const [stored, scale, mean] = prior.split(3);
      const step = stored.map((value) => Math.max(value, LEAST_STEP));
      onPreview?.({ header, height, width, z, y: null, yHat: product(mean, step) });
      const reduced = this.networks.conv("coder.context.reduction", prior);
      const rho = this.networks.gate(zHat, header.rateIndex);
      found = { z, ...this.decodeY(stack, step, scale, mean, reduced, rho) };
    }
    stack.finish();
    return { header, height, width, ...found };
  }

  decodeZ(stack, height, width, rateIndex) {
    const { factorized, channels, zTables, zRateTables, model } = this.weights;
    const positions = height * width;
    if (!factorized) {
      let [table] = zTables;
      // A bit of the file chooses between the table of the nearest rate point and fixed length.
      if (zRateTables.length && !stack.uniform(2)) table = zRateTables[Math.round(rateIndex / RATE_ONE)];
      return decodeIndices(stack, positions, model.coder.hyper.codebook_size, table);
    }
    const classes = Uint16Array.from({ length: channels * positions }, (_, k) => Math.floor(k / positions));
    return decodeIntegers(stack, classes, zTables);
  }

  decodeY(stack, step, scale, mean, reduced, rho) {
    const known = new Map3(mean.channels, mean.height, mean.width);
    const y = new Int32Array(known.data.length);
    const rhoOf = (at) => (rho ? rho.data[at % rho.positions] : 4096);
    for (let pass = 0; pass < 4; pass++) {
      if (pass) [scale, mean] = this.networks.context(pass, known, reduced);
      const elements = elementsOf(pass, known);
      const classes = Uint16Array.from(elements, (at) => this.tableOf(scale.data[at], rhoOf(at)));
      decodeIntegers(stack, classes, this.weights.yTables).forEach((value, k) => {
        const at = elements[k];
        y[at] = value;
        known.data[at] = value * rhoOf(at) + mean.data[at];
      });
    }
    return { y, yHat: product(known, step) };
  }

  /** Return the number of thresholds that are at most a scale over rho, both coarse. */
  tableOf(scale, rho) {
    const { thresholds } = this.weights;
    let first = 0;
    let end = thresholds.length;
    while (first < end) {
      const middle = (first + end) >> 1;
      if (thresholds[middle] * rho <= scale * 4096) first = middle + 1;
      else end = middle;
    }
    return first;
  }
}

/** Return the positions that a pass codes, in raster order. */
function elementsOf(pass, { channels, height, width }) {
  const found = new Uint32Array((channels * height * width) / 4);
  for (let c = 0, n = 0; c < channels; c++) {
    const position = ORDER[pass][Math.floor((4 * c) / channels)];
    for (let row = position >> 1; row < height; row += 2) {
      for (let column = position & 1; column < width; column += 2) found[n++] = (c * height + row) * width + column;
    }
  }
  return found;
}

/** Return y_hat, from units of 2^-12 both, as float32. */
function product(a, b) {
  const to = new Float32Array(a.data.length);
  for (let k = 0; k < to.length; k++) to[k] = (a.data[k] * b.data[k]) / 2 ** 24;
  return to;
}
