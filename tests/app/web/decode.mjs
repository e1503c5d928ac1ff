// Decode files: standard input is JSON, [{weights: path, files: [base64, ...]}, ...]; so is the output.
import { readFileSync } from "node:fs";
import { IntegerDecoder } from "../../../src/glc/app/web/integers.js";
import { Weights } from "../../../src/glc/app/web/weights.js";

const output = JSON.parse(readFileSync(0, "utf-8")).map(({ weights, files }) => {
  const decoder = new IntegerDecoder(new Weights(readFileSync(weights)));
  return files.map((file) => decode(decoder, Buffer.from(file, "base64")));
});
process.stdout.write(JSON.stringify(output));

function decode(decoder, data) {
  try {
    const { height, width, z, y, yHat } = decoder.decode(data);
    return { height, width, z: bytes(z), y: bytes(y), y_hat: bytes(yHat) };
  } catch (error) {
    return { error: error.name, message: error.message };
  }
}

function bytes(values) {
  return values && Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
}
