// The binary frames of docs/serve.md: 16 bytes of header, little-endian, then float32 samples.
export const VERSION = 1, AUDIO = 1, F32LE = 2;
export const PASSED = 1, LATE = 2, LAST = 4;
const HEADER = 16;

export function pack(samples, sequence, rate) {
  const data = new ArrayBuffer(HEADER + 4 * samples.length), head = new DataView(data);
  [VERSION, AUDIO, F32LE, 1].forEach((byte, at) => head.setUint8(at, byte));
  head.setUint32(4, sequence, true);
  head.setUint32(8, rate, true);
  new Float32Array(data, HEADER).set(samples);
  return data;
}

export function unpack(data) {
  const head = new DataView(data);
  if (data.byteLength < HEADER || head.getUint8(0) !== VERSION || head.getUint8(2) !== F32LE)
    throw new Error("The server speaks another version of the protocol; reload this page.");
  return { sequence: head.getUint32(4, true), rate: head.getUint32(8, true), flags: head.getUint16(12, true),
           samples: new Float32Array(data, HEADER) };
}

// 16-bit mono WAV of a list of Float32Arrays.
export function wav(pieces, rate) {
  const n = pieces.reduce((sum, x) => sum + x.length, 0), data = new DataView(new ArrayBuffer(44 + 2 * n));
  const text = (at, word) => [...word].forEach((c, i) => data.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"), text(8, "WAVEfmt "), text(36, "data");
  for (const [at, value] of [[4, 36 + 2 * n], [16, 16], [24, rate], [28, 2 * rate], [40, 2 * n]]) data.setUint32(at, value, true);
  for (const [at, value] of [[20, 1], [22, 1], [32, 2], [34, 16]]) data.setUint16(at, value, true);
  let at = 44;
  for (const piece of pieces)
    for (const x of piece) data.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(32768 * x))), true), at += 2;
  return new Blob([data], { type: "audio/wav" });
}
