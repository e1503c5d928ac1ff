// Products of matrices of doubles, the bulk of the integer networks' time.

const ROWS = 4;
const COLUMNS = 2;

/** Return a matrix [rows][depth] in groups of four rows, [groups][depth][4], zeros below the last row. */
export function pack(matrix, rows, depth) {
  const groups = Math.ceil(rows / ROWS);
  const to = new Float64Array(groups * depth * ROWS);
  for (let row = 0; row < rows; row++) {
    const start = Math.floor(row / ROWS) * depth * ROWS + (row % ROWS);
    for (let k = 0; k < depth; k++) to[start + k * ROWS] = matrix[row * depth + k];
  }
  return to;
}

/** Write packed a [rows][depth] x b [depth][columns] to `to` [rows][columns]; any order of sums is exact. */
export function multiply(a, b, rows, depth, columns, to) {
  const panel = new Float64Array(depth * COLUMNS);
  for (let column = 0; column < columns; column += COLUMNS) {
    const pair = column + 1 < columns;
    for (let k = 0, from = column; k < depth; k++, from += columns) {
      panel[2 * k] = b[from];
      panel[2 * k + 1] = pair ? b[from + 1] : 0;
    }
    for (let row = 0; row < rows; row += ROWS) {
      const sums = product(a, row * depth, panel, depth);
      for (let r = 0; r < ROWS && row + r < rows; r++) {
        const at = (row + r) * columns + column;
        to[at] = sums[2 * r];
        if (pair) to[at + 1] = sums[2 * r + 1];
      }
    }
  }
}

const SUMS = new Float64Array(ROWS * COLUMNS);

/** Return four rows of a times two columns: small enough for the sums to stay in registers. */
function product(a, start, panel, depth) {
  let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0;
  for (let k = 0, at = start; k < 2 * depth; k += 2, at += 4) {
    const x0 = panel[k];
    const x1 = panel[k + 1];
    const a0 = a[at];
    const a1 = a[at + 1];
    const a2 = a[at + 2];
    const a3 = a[at + 3];
    s00 += a0 * x0;
    s01 += a0 * x1;
    s10 += a1 * x0;
    s11 += a1 * x1;
    s20 += a2 * x0;
    s21 += a2 * x1;
    s30 += a3 * x0;
    s31 += a3 * x1;
  }
  SUMS[0] = s00;
  SUMS[1] = s01;
  SUMS[2] = s10;
  SUMS[3] = s11;
  SUMS[4] = s20;
  SUMS[5] = s21;
  SUMS[6] = s30;
  SUMS[7] = s31;
  return SUMS;
}
