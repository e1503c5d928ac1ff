// Part 3 of docs/bitstream.md: the weights file.

import { GlcError } from "./bitstream.js";
import { Table } from "./entropy.js";

const BYTES = { F32: 4, F16: 2, BF16: 2 };

/** The weights of a codec, read from a safetensors file. */
export class Weights {
  /** @param {Uint8Array} data the whole file */
  constructor(data) {
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
    if (metadata.format !== "1") throw new GlcError("WeightsError", "the weights have another format than 1");
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
    this.yTables = this.tables.y.map((stored) => {
      const [first, ...rest] = stored.slice(0, -1);
      return new Table(-rest.length, [...rest.toReversed(), first, ...rest, stored.at(-1)]);
    });
    this.zTables = this.tables.z.map(([low, ...frequencies]) => new Table(low, frequencies));
    this.thresholds = Float64Array.from(this.tables.thresholds);
    if (this.thresholds.some((value, k) => k && value <= this.thresholds[k - 1])) {
      throw new GlcError("WeightsError", "the thresholds do not ascend");
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
    return this.values(name).map((value) => roundHalfEven(value * factor));
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
    const view = new DataView(this.data.buffer, this.data.byteOffset + at, count * size);
    const word = new DataView(new ArrayBuffer(4));
    const read = {
      F32: (k) => view.getFloat32(4 * k, true),
      F16: (k) => fromHalf(view.getUint16(2 * k, true)),
      BF16: (k) => (word.setUint32(0, view.getUint16(2 * k, true) << 16), word.getFloat32(0)),
    }[dtype];
    const found = new Float64Array(count);
    for (let k = 0; k < count; k++) {
      found[k] = read(k);
      if (!Number.isFinite(found[k])) throw new GlcError("WeightsError", `${name} is not finite`);
    }
    return found;
  }
}

const UNIT = 1.5 * 2 ** 52; // near it, the unit in the last place of a double is 1

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
