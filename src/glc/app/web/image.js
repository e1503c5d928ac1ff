// From the integers to the image: g_s and D in ONNX Runtime Web, in float32.

import { GlcError, RATE_ONE } from "./bitstream.js";

/** Computes images from the integers that `IntegerDecoder` returns. */
export class ImageDecoder {
  /**
   * @param {object} ort the module onnxruntime-web/wasm, or one with its interface
   * @param {import("./weights.js").Weights} weights
   * @param {{synthesis?: Uint8Array, decoder: Uint8Array}} graphs ONNX models; weights outside of them are those in
   *   the file `weights`, under the name "weights"
   */
  static async create(ort, weights, graphs) {
    const options = {
      executionProviders: ["wasm"],
      // The arena keeps the largest memory that any image needed.
      enableCpuMemArena: false,
      externalData: [{ path: "weights", data: weights.data }],
    };
    const sessions = {};
    for (const [name, graph] of Object.entries(graphs)) {
      sessions[name] = await ort.InferenceSession.create(graph, { ...options });
    }
    return new ImageDecoder(ort, weights, sessions);
  }

  constructor(ort, weights, sessions) {
    Object.assign(this, { ort, weights, sessions });
  }

  /**
   * Return the image of a decoded file.
   *
   * @param {object} decoded from `IntegerDecoder`, or its preview
   * @returns {Promise<{width: number, height: number, data: Uint8ClampedArray}>} RGBA, as ImageData takes it
   * @throws {GlcError} pixels are not finite, or out of memory
   */
  async decode({ header, height, width, y, yHat }) {
    const { ort, sessions } = this;
    const tensor = (data, dims) => new ort.Tensor("float32", data, dims);
    let latent;
    try {
      if (yHat) {
        const inputs = {
          y_hat: tensor(yHat, [1, this.weights.channels, height, width]),
          rate: tensor(Float32Array.of(header.rateIndex / RATE_ONE), [1]),
        };
        latent = (await sessions.synthesis.run(inputs)).l_hat;
      } else {
        const [data, channels] = this.codewords(y, header.rateIndex / RATE_ONE);
        latent = tensor(data, [1, channels, height, width]);
      }
      const { x_hat: found } = await sessions.decoder.run({ l_hat: latent });
      return toPixels(found, header);
    } catch (error) {
      if (error instanceof GlcError) throw error;
      const text = String(error?.message ?? error);
      if (/alloc|memory|out of bounds/i.test(text) || typeof error === "number") {
        throw new GlcError("MemoryLimitError", `${header.width} x ${header.height} pixels: out of memory`);
      }
      throw new GlcError("Error", text.split("\n")[0]);
    }
  }

  /** Return the codewords [C][positions] of indices, and C. */
  codewords(indices, rate) {
    const name = `coder.codebooks.${rate}.embedding`;
    const channels = this.weights.shape(name)[1];
    const values = this.weights.values(name);
    const found = new Float32Array(channels * indices.length);
    indices.forEach((index, p) => {
      for (let c = 0; c < channels; c++) found[c * indices.length + p] = values[index * channels + c];
    });
    return [found, channels];
  }
}

function toPixels({ data, dims }, { width, height }) {
  const [, , rows, columns] = dims;
  const pixels = new Uint8ClampedArray(4 * width * height); // rounds to nearest, halves to even
  let finite = true;
  for (let row = 0, at = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      for (let c = 0; c < 3; c++) {
        const value = data[(c * rows + row) * columns + column];
        finite &&= Number.isFinite(value);
        pixels[at++] = (value + 1) * 127.5;
      }
      pixels[at++] = 255;
    }
  }
  if (!finite) throw new GlcError("NotFiniteError", "the file decodes to pixels that are not finite");
  return { width, height, data: pixels };
}
