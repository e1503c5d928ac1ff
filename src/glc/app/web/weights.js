// Part 3 of docs/bitstream.md: the weights file.

import { GlcError } from "./bitstream.js";
import { Table } from "./entropy.js";

const BYTES = { F32: 4, F16: 2, BF16: 2 };

/** The weights of a codec, read from a safetensors file. */
export class Weights {
  /** @param {Uint8Array} data the whole file */
  constructor(data) {
    data = new Uint8Array(data.buffer, data.byteOffset, data.length);
    this.data = data;
    let metadata;
    try {
      const view = new DataView(data.buffer, data.byteOffset, data.length);
      this.start = 8 + Number(view.getBigUint64(0, true));
      const text = new TextDecoder("utf-8", { fatal: true }).decode(data.subarray(8, this.start));
      ({ __metadata__: metadata, ...this.tensors } = JSON.parse(text));
      this.model = JSON.parse(metadata.model);
      this.tables = JSON.parse(metadata.tables);
    } catch {
      throw new GlcError("WeightsError", "the weights are not a codec's safetensors file");
    }
    if (!["1", "2"].includes(metadata.format)) {
      throw new GlcError("WeightsError", "the weights have another format than 1 and 2: reload a newer page");
    }
    /** 64 hexadecimal digits; files have the first 8. */
    this.fingerprint = metadata.fingerprint;
    const { coder, decoder } = this.model;
    this.mapsIndices = coder._target_.endsWith(".IndicesMapCoder");
    this.factorized = !this.mapsIndices && coder.hyper._target_.endsWith(".FactorizedHyperprior");
    this.numRates = this.mapsIndices ? coder.sizes.length : (coder.num_rates ?? 4);
    /** Pixels per latent position: f. */
    this.downsampling = (decoder.stem ?? 1) * 2 ** ((decoder.multipliers ?? [1, 1, 2, 2, 4]).length - 1);
    if (this.mapsIndices) return;
    if (coder.hyper.projected) throw new GlcError("WeightsError", "projected codebooks are not part of the format");
    this.channels = coder.context.channels;
    this.depth = coder.context.depth ?? 3;
    /** Whether z and the rate index multiply the quantisation steps. */
    this.gated = Boolean(coder.gate);
    this.yTables = this.tables.y.map((stored) => {
      const [first, ...rest] = stored.slice(0, -1);
      return new Table(-rest.length, [...rest.toReversed(), first, ...rest, stored.at(-1)]);
    });
    const read = ([low, ...frequencies]) => new Table(low, frequencies);
    this.zTables = this.tables.z.map(read);
    /** One table of indices per rate point, or none. */
    this.zRateTables = (this.tables.z_rates ?? []).map(read);
    this.checkIndexTables(coder);
    this.thresholds = Float64Array.from(this.tables.thresholds);
    if (this.thresholds.some((value, k) => k && value <= this.thresholds[k - 1])) {
      throw new GlcError("WeightsError", "the thresholds do not ascend");
    }
  }

  /** Check the tables of indices z: none, one, or one per rate point, each of all indices. */
  checkIndexTables({ hyper }) {
    const tables = this.factorized ? this.zRateTables : [...this.zTables, ...this.zRateTables];
    const counts = this.factorized
      ? tables.length === 0
      : this.zTables.length <= 1 && [0, this.zTables.length ? 0 : this.numRates].includes(this.zRateTables.length);
    if (!counts || tables.some(({ low, escape }) => low !== 0 || escape !== hyper.codebook_size - 1)) {
      throw new GlcError("WeightsError", "the tables of z do not fit the codec");
    }
  }

  has(name) {
    return name in this.tensors;
  }

  shape(name) {
    if (!this.has(name)) throw new GlcError("WeightsError", `the weights have no ${name}`);
    return this.tensors[name].shape;
  }

  /** Return a tensor times a factor, rounded to nearest, halves to even. */
  scaled(name, factor) {
    const values = this.values(name);
    return mapped(values, values, (value) => roundHalfEven(value * factor));
  }

  /** Return a tensor's values as doubles. */
  values(name) {
    const count = this.shape(name).reduce((a, b) => a * b, 1);
    const { dtype, data_offsets: [first] } = this.tensors[name];
    const size = BYTES[dtype];
    const at = this.start + first;
    if (!size || at + count * size > this.data.length) {
      throw new GlcError("WeightsError", `${name}: damaged, or of type ${dtype}`);
    }
    const found = new Float64Array(READ[dtype](this.data.slice(at, at + count * size).buffer));
    if (!found.every(Number.isFinite)) throw new GlcError("WeightsError", `${name} is not finite`);
    return found;
  }
}

const READ = {
  F32: (buffer) => new Float32Array(buffer),
  F16: (buffer) => mapped(new Uint16Array(buffer), new Float32Array(buffer.byteLength / 2), (bits) => HALVES[bits]),
  BF16: (buffer) =>
    new Float32Array(mapped(new Uint16Array(buffer), new Uint32Array(buffer.byteLength / 2), (bits) => bits << 16).buffer),
};

const UNIT = 1.5 * 2 ** 52; // near it, the unit in the last place of a double is 1

// Far faster than the `from` and `map` of typed arrays.
function mapped(from, to, f) {
  for (let k = 0; k < to.length; k++) to[k] = f(from[k]);
  return to;
}

/** Return the nearest integer, halves to the even one; |x| must be below 2^51. */
export function roundHalfEven(x) {
  return x + UNIT - UNIT;
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => fromHalf(bits));
