// Products of matrices of doubles, the bulk of the integer networks' time, two at once in WebAssembly's SIMD.

const ROWS = 4;
const COLUMNS = 4;
const DOUBLE = 8;
const PAGE = 65536;

/** Multiplies by constant matrices, which lie in WebAssembly's memory. */
export class Multiplier {
  constructor() {
    this.memory = new WebAssembly.Memory({ initial: 1 });
    this.used = 0;
    this.scratch = { size: 0 };
    const module = new WebAssembly.Module(MODULE);
    this.product = new WebAssembly.Instance(module, { env: { memory: this.memory } }).exports.product;
  }

  /** Return the address of `count` doubles. */
  allocate(count) {
    const at = this.used;
    this.used += Math.ceil(count / 2) * 2 * DOUBLE;
    const missing = this.used - this.memory.buffer.byteLength;
    if (missing > 0) this.memory.grow(Math.ceil(missing / PAGE));
    return at;
  }

  /** Return the doubles at an address; growth of the memory ends their validity. */
  view(at, count) {
    return new Float64Array(this.memory.buffer, at, count);
  }

  /** Store a matrix [rows][depth] in groups of four rows, [groups][depth][4], with zeros below the last row. */
  store(matrix, rows, depth) {
    const groups = Math.ceil(rows / ROWS);
    const at = this.allocate(groups * depth * ROWS);
    const to = this.view(at, groups * depth * ROWS);
    for (let row = 0; row < rows; row++) {
      const start = Math.floor(row / ROWS) * depth * ROWS + (row % ROWS);
      for (let k = 0; k < depth; k++) to[start + k * ROWS] = matrix[row * depth + k];
    }
    return { at, rows, depth, groups };
  }

  /** Return a stored matrix times x [depth][columns], as [rows][columns]; sums are exact in any order. */
  multiply({ at, rows, depth, groups }, x, columns) {
    const found = new Float64Array(rows * columns);
    const [panelSize, sumsSize] = [depth * COLUMNS, groups * ROWS * COLUMNS];
    if (this.scratch.size < panelSize + sumsSize) {
      this.scratch = { size: panelSize + sumsSize, at: this.allocate(panelSize + sumsSize) };
    }
    const panel = this.view(this.scratch.at, panelSize);
    const sums = this.view(this.scratch.at + panelSize * DOUBLE, sumsSize);
    for (let column = 0; column < columns; column += COLUMNS) {
      copyColumns(x, column, columns, panel, 0, COLUMNS, depth, columns - column);
      this.product(at, groups, panel.byteOffset, depth, sums.byteOffset);
      copyColumns(sums, 0, COLUMNS, found, column, columns, rows, columns - column);
    }
    return found;
  }
}

/** Copy at most four columns of two matrices with their offsets and strides. */
function copyColumns(from, at, stride, to, start, step, rows, count) {
  if (count < COLUMNS) {
    for (let row = 0; row < rows; row++) {
      for (let c = 0; c < count; c++) to[start + row * step + c] = from[at + row * stride + c];
    }
    return;
  }
  for (let row = 0; row < rows; row++, at += stride, start += step) {
    to[start] = from[at];
    to[start + 1] = from[at + 1];
    to[start + 2] = from[at + 2];
    to[start + 3] = from[at + 3];
  }
}

// The WebAssembly module. Its function
//
//     product(a, groups, panel, depth, to):  to [groups][4][4] = a [groups][depth][4] x panel [depth][4]
//
// keeps the 16 sums of a group in registers.

const leb = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >> 7)]);
const vector = (items) => [...leb(items.length), ...items.flat()];
const bytes = (items) => [...leb(items.length), ...items];
const text = (value) => bytes([...new TextEncoder().encode(value)]);
const section = (id, items) => [id, ...bytes(vector(items))];

const [I32, V128, FUNCTION, EMPTY] = [0x7f, 0x7b, 0x60, 0x40];
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const tee = (local) => [0x22, local];
const loop = (...body) => [0x03, EMPTY, ...body.flat(), 0x0b];
const again = [0x0d, 0];
const number = (n) => [0x41, ...(n < 64 ? [n] : [(n & 127) | 128, n >> 7])]; // for n < 2^13
const increase = (local, by) => [...get(local), ...number(by), 0x6a, ...set(local)];
const countDown = (local) => [...get(local), ...number(1), 0x6b, ...tee(local)];
const load = (offset) => [0xfd, 0, 3, ...leb(offset)];
const loadTwice = (offset) => [0xfd, 10, 3, ...leb(offset)]; // a double in both lanes
const storeVector = (offset) => [0xfd, 11, 3, ...leb(offset)];
const zeros = [0xfd, 12, ...Array(16).fill(0)];
const add = [0xfd, ...leb(0xf0)];
const multiplyLanes = [0xfd, ...leb(0xf2)];

function build() {
  const [a, groups, panel, depth, to, b, k] = [0, 1, 2, 3, 4, 5, 6];
  const [x0, x1, w, firstSum] = [7, 8, 9, 10];
  const sum = (row, half) => firstSum + 2 * row + half;
  const rows = [0, 1, 2, 3];
  const cells = rows.flatMap((row) => [0, 1].map((half) => [row, half]));
  const step = rows.flatMap((row) => [
    ...get(a), ...loadTwice(8 * row), ...set(w),
    ...[x0, x1].flatMap((x, half) => [
      ...get(sum(row, half)), ...get(w), ...get(x), ...multiplyLanes, ...add, ...set(sum(row, half)),
    ]),
  ]);
  const body = loop(
    cells.flatMap(([row, half]) => [...zeros, ...set(sum(row, half))]),
    [...get(panel), ...set(b), ...get(depth), ...set(k)],
    loop(
      [...get(b), ...load(0), ...set(x0), ...get(b), ...load(16), ...set(x1)],
      step,
      increase(a, 32), increase(b, 32), countDown(k), again,
    ),
    cells.flatMap(([row, half]) => [...get(to), ...get(sum(row, half)), ...storeVector(32 * row + 16 * half)]),
    increase(to, 128), countDown(groups), again,
  );
  const locals = vector([[...leb(2), I32], [...leb(11), V128]]);
  return Uint8Array.from([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [[FUNCTION, ...vector(Array(5).fill([I32])), 0]]),
    ...section(2, [[...text("env"), ...text("memory"), 2, 0, 0]]), // a memory of any size
    ...section(3, [[0]]),
    ...section(7, [[...text("product"), 0, 0]]),
    ...section(10, [bytes([...locals, ...body, 0x0b])]),
  ]);
}

const MODULE = build();
