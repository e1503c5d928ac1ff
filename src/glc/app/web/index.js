// Decoder of .glc files in JavaScript; see docs/browser.md.

export { GlcError, parse } from "./bitstream.js";
export { ImageDecoder } from "./image.js";
export { IntegerDecoder } from "./integers.js";
export { Weights } from "./weights.js";
