// Parts 1 and 2 of docs/bitstream.md: the file.

/** A file or weights that cannot be decoded. `name` is that of glc's exception, `message` one line. */
export class GlcError extends Error {
  constructor(name, message) {
    super(message);
    this.name = name;
  }
}

/** One step of the rate index in the header. */
export const RATE_ONE = 4096;

const HEADER = 14;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/**
 * Return header and payload of a file, after the checks that need no weights.
 *
 * @param {Uint8Array} data
 * @param {number} maxPixels largest accepted width x height
 * @returns {{fingerprint: string, width: number, height: number, rateIndex: number, payload: Uint8Array}}
 *   the fingerprint has 8 hexadecimal digits; the rate index is in units of 1 / 4096
 */
export function parse(data, maxPixels = 16384 * 16384) {
  const magic = [0x47, 0x4c, 0x43];
  if (!data.length || magic.some((byte, k) => k < data.length && data[k] !== byte)) {
    throw new GlcError("NotGlcError", "not a .glc file");
  }
  if (data.length > 3 && data[3] !== 1) {
    if (data[3]) throw new GlcError("NewerVersionError", `version ${data[3]} of the format: reload a newer page`);
    throw new GlcError("CorruptFileError", "corrupt: version 0 does not exist");
  }
  if (data.length < HEADER + 4) {
    throw new GlcError("TruncatedError", `truncated: ${data.length} bytes, the shortest file has ${HEADER + 4}`);
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const end = data.length - 4;
  if (crc32(data.subarray(0, end)) !== view.getUint32(end, true)) {
    throw new GlcError("CorruptFileError", "corrupt or truncated: the checksum does not match");
  }
  const width = view.getUint16(8, true) + 1;
  const height = view.getUint16(10, true) + 1;
  if (width * height > maxPixels) {
    throw new GlcError(
      "SizeLimitError",
      `too large: ${width} x ${height} pixels, the limit is ${(maxPixels / 1e6).toFixed(1)} million`,
    );
  }
  const payload = data.subarray(HEADER, end);
  if (payload.length && payload[payload.length - 1] === 0) {
    throw new GlcError("CorruptFileError", "corrupt: the payload ends in a zero byte");
  }
  const fingerprint = Array.from(data.subarray(4, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { fingerprint, width, height, rateIndex: view.getUint16(12, true), payload };
}
