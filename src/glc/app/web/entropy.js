// Part 5 of docs/bitstream.md: the entropy coder, and runs of indices and integers.

import { GlcError } from "./bitstream.js";

const TOTAL = 2 ** 24;
const WORD = 2 ** 32;
const MAX_SYMBOL = 32767;
const BITS_AT_ONCE = 12;

/** Frequencies of the integers `low`, `low + 1`, ..., `high` and, last, of the escape. */
export class Table {
  constructor(low, frequencies) {
    this.low = low;
    this.escape = frequencies.length - 1;
    this.high = low + this.escape - 1;
    this.starts = new Float64Array(frequencies.length + 1);
    frequencies.forEach((frequency, k) => {
      if (!Number.isInteger(frequency) || frequency <= 0) throw new GlcError("WeightsError", "bad frequency");
      this.starts[k + 1] = this.starts[k] + frequency;
    });
    if (this.starts[frequencies.length] !== TOTAL) throw new GlcError("WeightsError", "bad sum of frequencies");
  }
}

/** The stack of 32-bit words with its state of 64 bits, kept in two halves that doubles hold exactly. */
export class Stack {
  constructor(payload) {
    const padded = new Uint8Array(Math.ceil(payload.length / 4) * 4);
    padded.set(payload);
    const view = new DataView(padded.buffer);
    this.words = Array.from({ length: padded.length / 4 }, (_, k) => view.getUint32(4 * k, true));
    this.high = 0;
    this.low = 0;
    while (this.words.length && this.high === 0) this.refill();
  }

  refill() {
    this.high = this.low;
    this.low = this.words.pop();
  }

  /** Replace the state x by (x >> 24) * frequency + x mod 2^24 - start. */
  take(start, frequency) {
    const rest = (this.low & 0xffffff) - start;
    const upper = Math.floor(this.high / 4096); // x >> 24 is upper * 2^20 + lower
    const lower = (this.high % 4096) * 256 + (this.low >>> 24);
    const product = upper * frequency; // below 2^44, as is the next one
    const sum = (product % 4096) * 2 ** 20 + lower * frequency + rest;
    const carry = Math.floor(sum / WORD);
    this.high = Math.floor(product / 4096) + carry;
    this.low = sum - carry * WORD;
    if (this.high === 0 && this.words.length) this.refill();
  }

  /** Return the next position in a table. */
  position({ starts }) {
    const q = this.low & 0xffffff;
    let first = 0;
    let end = starts.length - 1;
    while (end - first > 1) {
      const middle = (first + end) >> 1;
      if (starts[middle] <= q) first = middle;
      else end = middle;
    }
    this.take(starts[first], starts[first + 1] - starts[first]);
    return first;
  }

  /** Return the next of n equally likely values. */
  uniform(n) {
    if (n === 1) return 0;
    const width = Math.floor(TOTAL / n);
    const value = Math.min(Math.floor((this.low & 0xffffff) / width), n - 1);
    this.take(value * width, value < n - 1 ? width : TOTAL - value * width);
    return value;
  }

  /** Check that the payload is used up. */
  finish() {
    if (this.high || this.low || this.words.length) {
      throw new GlcError("CorruptFileError", "corrupt: data after the last symbol");
    }
  }
}

/** Return `count` indices below `size`, under a table or, without one, equally likely. */
export function decodeIndices(stack, count, size, table) {
  const found = new Int32Array(count);
  for (let k = 0; k < count; k++) found[k] = table ? stack.position(table) : stack.uniform(size);
  return found;
}

/** Return as many integers as there are classes, each under the table of its class. */
export function decodeIntegers(stack, classes, tables) {
  const order = stableOrder(classes, tables.length);
  const found = new Int32Array(classes.length);
  const escaped = [];
  for (const at of order) {
    const table = tables[classes[at]];
    const position = stack.position(table);
    found[at] = table.low + position;
    if (position === table.escape) escaped.push({ at, table });
  }
  for (const one of escaped) one.below = stack.uniform(2) === 1;
  for (const one of escaped) one.length = stack.uniform(16) + 1;
  for (const one of escaped) one.excess = 2 ** (one.length - 1);
  for (let length = 2; length <= 16; length++) {
    const members = escaped.filter((one) => one.length === length);
    const lower = Math.min(length - 1, BITS_AT_ONCE);
    const upper = length - 1 - lower;
    for (const one of members) one.excess += stack.uniform(2 ** upper) * 2 ** lower;
    for (const one of members) one.excess += stack.uniform(2 ** lower);
  }
  for (const { at, table, below, excess } of escaped) {
    found[at] = below ? table.low - excess : table.high + excess;
    if (Math.abs(found[at]) > MAX_SYMBOL) throw new GlcError("CorruptFileError", "corrupt: a symbol is out of range");
  }
  return found;
}

/** Return the positions of the classes, sorted by class, then by position. */
function stableOrder(classes, count) {
  const next = new Uint32Array(count + 1);
  for (const found of classes) next[found + 1]++;
  for (let k = 0; k < count; k++) next[k + 1] += next[k];
  const order = new Uint32Array(classes.length);
  classes.forEach((found, at) => {
    order[next[found]++] = at;
  });
  return order;
}
