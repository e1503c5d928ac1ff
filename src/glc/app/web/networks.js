// Parts 6 and 7 of docs/bitstream.md: the integer networks, exact in doubles.
//
// Maps are planar doubles [C][h * w] in coarse units (2^-12). A fine value is a multiple of 2^-14 of that unit, so
// that scaling by powers of two, which is exact, replaces the shifts of the specification.

import { GlcError } from "./bitstream.js";
import { Multiplier } from "./matrix.js";
import { roundHalfEven } from "./weights.js";

const LIMIT = 2 ** 26;
const SLOPE_MIX = 164 / 2 ** 14;
const SLOPE_UP = 1638 / 2 ** 14;
const WEIGHT_ONE = 2 ** 14;

const clamp = (x) => (x > LIMIT ? LIMIT : x < -LIMIT ? -LIMIT : x);
/** R of the specification. */
const toCoarse = (x) => roundHalfEven(clamp(x));

/** Channels, rows and columns of doubles. */
export class Map3 {
  constructor(channels, height, width, data = new Float64Array(channels * height * width)) {
    Object.assign(this, { channels, height, width, data });
  }

  get positions() {
    return this.height * this.width;
  }

  /** Return `count` equal parts of consecutive channels, which share this map's memory. */
  split(count) {
    const channels = this.channels / count;
    const size = channels * this.positions;
    return Array.from({ length: count }, (_, k) => this.like(channels, this.data.subarray(k * size, (k + 1) * size)));
  }

  like(channels, data) {
    return new Map3(channels, this.height, this.width, data);
  }

  /** Return the elements under a function, in a new map. */
  map(f) {
    const to = new Float64Array(this.data.length);
    for (let k = 0; k < to.length; k++) to[k] = f(this.data[k]);
    return this.like(this.channels, to);
  }

  add(other) {
    const to = new Float64Array(this.data.length);
    for (let k = 0; k < to.length; k++) to[k] = this.data[k] + other.data[k];
    return this.like(this.channels, to);
  }
}

export function concatenate(a, b) {
  const data = new Float64Array(a.data.length + b.data.length);
  data.set(a.data);
  data.set(b.data, a.data.length);
  return a.like(a.channels + b.channels, data);
}

/** Return [C][2h][2w] from [4C][h][w]. */
function shuffle(x) {
  const { height, width } = x;
  const to = new Map3(x.channels / 4, 2 * height, 2 * width);
  for (let c = 0, from = 0; c < x.channels; c++) {
    const i = (c >> 1) & 1;
    const j = c & 1;
    for (let row = 0; row < height; row++) {
      let at = ((c >> 2) * 2 * height + 2 * row + i) * 2 * width + j;
      for (let column = 0; column < width; column++, at += 2) to.data[at] = x.data[from++];
    }
  }
  return to;
}

const leaky = (x, slope) => x.map((u) => (u >= 0 ? u : u * slope));

/** Return the product of the halves v and leaky(g), coarse. */
function gated(x) {
  const [v, g] = x.split(2);
  const to = new Float64Array(v.data.length);
  for (let k = 0; k < to.length; k++) {
    const gate = g.data[k] >= 0 ? g.data[k] : g.data[k] * SLOPE_UP;
    // Exact up to 2^53; beyond it the result is clamped anyway.
    to[k] = toCoarse((v.data[k] * gate) / 4096);
  }
  return v.like(v.channels, to);
}

/** The integer networks of a codec. */
export class Networks {
  constructor(weights) {
    this.weights = weights;
    this.layers = new Map();
    this.multiplier = new Multiplier();
  }

  /** Return a convolution's packed weights, made when they are first used. */
  layer(name) {
    let layer = this.layers.get(name);
    if (!layer) this.layers.set(name, (layer = this.read(name)));
    return layer;
  }

  read(name) {
    const [out, , side] = this.weights.shape(`${name}.weight`);
    const weight = this.weights.scaled(`${name}.weight`, WEIGHT_ONE);
    const bias = this.weights.scaled(`${name}.bias`, 2 ** 26);
    const row = weight.length / out;
    for (let o = 0; o < out; o++) {
      let sum = Math.abs(bias[o]);
      for (let k = o * row; k < (o + 1) * row; k++) sum += Math.abs(weight[k]) * LIMIT;
      if (!(sum < 2 ** 53)) throw new GlcError("WeightsError", `the weights of ${name} are too large`);
    }
    const matrix = name.endsWith("depthwise") ? null : this.multiplier.store(weight, out, row);
    return { out, side, bias, weight, matrix };
  }

  /** Coarse or fine to coarse: rounds and clamps its input. */
  conv(name, x) {
    const { out, side, bias, weight, matrix } = this.layer(name);
    const { positions } = x;
    x = x.map(toCoarse);
    const data = matrix
      ? this.multiplier.multiply(matrix, side === 1 ? x.data : windows(x), positions)
      : depthwise(weight, x);
    for (let o = 0, at = 0; o < out; o++) {
      for (let end = at + positions; at < end; at++) data[at] = toCoarse((data[at] + bias[o]) / WEIGHT_ONE);
    }
    return x.like(out, data);
  }

  depthConv(name, x) {
    const a = leaky(this.conv(`${name}.mix`, x), SLOPE_MIX);
    const b = this.conv(`${name}.project`, this.conv(`${name}.depthwise`, a));
    if (this.weights.has(`${name}.skip.weight`)) x = this.conv(`${name}.skip`, x);
    return x.add(b);
  }

  block(name, x) {
    x = this.depthConv(`${name}.0`, x);
    return x.add(this.conv(`${name}.1.project`, gated(this.conv(`${name}.1.expand`, x))));
  }

  upsample(name, x) {
    const a = leaky(shuffle(this.conv(`${name}.expand`, x)), SLOPE_MIX);
    const skip = shuffle(this.conv(`${name}.skip`, x));
    return leaky(this.conv(`${name}.conv`, a), SLOPE_UP).add(skip);
  }

  /** Return z_hat [N][h / 4][w / 4], coarse, of z: indices [h / 4][w / 4], or integers [N][h / 4][w / 4]. */
  zHat(z, height, width) {
    const { channels, factorized } = this.weights;
    const positions = height * width;
    const x = new Map3(channels, height, width);
    if (factorized) {
      for (let k = 0; k < z.length; k++) x.data[k] = z[k] * 4096;
    } else {
      this.codewords ??= this.weights.scaled("coder.hyper.quantizer.embedding", 4096).map(clamp);
      for (let p = 0; p < positions; p++) {
        for (let c = 0; c < channels; c++) x.data[c * positions + p] = this.codewords[z[p] * channels + c];
      }
    }
    return x;
  }

  /** Return rho [1][h][w], coarse, of z_hat and the rate index in units of 1 / 4096; null without a gate. */
  gate(zHat, rateIndex) {
    const { numRates } = this.weights;
    if (!this.weights.gated) return null;
    const points = new Map3(numRates, zHat.height, zHat.width);
    for (let k = 0, at = 0; k < numRates; k++) {
      const weight = Math.max(0, 4096 - Math.abs(rateIndex - 4096 * k));
      for (let p = 0; p < points.positions; p++) points.data[at++] = weight;
    }
    let x = concatenate(zHat, points);
    for (const k of [0, 1]) x = this.upsample(`coder.gate.layers.${k}`, x);
    x = this.conv("coder.gate.layers.3", this.depthConv("coder.gate.layers.2", x));
    return x.map((g) => Math.max(4096, 4096 + g));
  }

  /** Return the prior [3N][h][w] of z_hat. */
  prior(x) {
    const prefix = "coder.hyper.synthesis";
    for (const k of [0, 1]) x = this.upsample(`${prefix}.${k}`, x);
    for (const k of [2, 3, 4]) x = this.block(`${prefix}.${k}`, x);
    return x;
  }

  /** Return scales and means for a pass after the first. */
  context(pass, known, reduced) {
    let x = this.block(`coder.context.adaptors.${pass - 1}`, concatenate(known, reduced));
    for (let k = 0; k < this.weights.depth; k++) x = this.block(`coder.context.shared.${k}`, x);
    return x.split(2);
  }
}

/** Return the sums of a depth-wise 3x3 convolution. */
function depthwise(weight, x) {
  const { channels, height, width } = x;
  const to = new Float64Array(x.data.length);
  for (let c = 0; c < channels; c++) {
    const plane = c * height * width;
    for (let dy = -1; dy <= 1; dy++) {
      for (let dx = -1; dx <= 1; dx++) {
        const w = weight[9 * c + 3 * (dy + 1) + dx + 1];
        const first = Math.max(0, -dx);
        const end = width - Math.max(0, dx);
        for (let row = Math.max(0, -dy); row < height - Math.max(0, dy); row++) {
          const at = plane + row * width;
          const from = at + dy * width + dx;
          for (let column = first; column < end; column++) to[at + column] += w * x.data[from + column];
        }
      }
    }
  }
  return to;
}

/** Return the 3x3 windows [C * 9][positions] of a map, zero outside. */
function windows(x) {
  const { channels, height, width, positions } = x;
  const to = new Float64Array(9 * channels * positions);
  for (let c = 0, plane = 0; c < channels; c++) {
    for (let dy = -1; dy <= 1; dy++) {
      for (let dx = -1; dx <= 1; dx++, plane += positions) {
        const first = Math.max(0, -dx);
        const end = width - Math.max(0, dx);
        for (let row = Math.max(0, -dy); row < height - Math.max(0, dy); row++) {
          const from = c * positions + (row + dy) * width + dx;
          to.set(x.data.subarray(from + first, from + end), plane + row * width + first);
        }
      }
    }
  }
  return to;
}
