// Audio thread: the microphone in chunks, and a jitter buffer before the loudspeaker.

class Capture extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.size = options.processorOptions.size;
    this.chunk = new Float32Array(this.size);
    this.filled = 0;
    this.port.onmessage = ({ data }) => { if (data === "end") this.ended = true; };
  }

  process([input]) {
    const x = input[0];
    if (x)
      for (let at = 0; at < x.length; ) {
        const n = Math.min(x.length - at, this.size - this.filled);
        this.chunk.set(x.subarray(at, at + n), this.filled);
        at += n;
        this.filled += n;
        if (this.filled === this.size) {
          this.port.postMessage(this.chunk, [this.chunk.buffer]);
          this.chunk = new Float32Array(this.size);
          this.filled = 0;
        }
      }
    return !this.ended;
  }
}

// Waits until `target` samples are there, then plays. Runs dry: fades out, waits again, and keeps a little more from
// then on. Holds far more than it needs for a second: skips ahead, cross-faded.
const FADE = 128, MOST_TARGET = 0.3, SLACK = 0.12;

class Playback extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.pieces = [];
    this.depth = 0; // samples that wait
    this.target = options.processorOptions.target;
    this.playing = false;
    this.gain = 0;
    this.last = 0;
    this.least = Infinity; // depth over the last second
    this.blocks = 0;
    this.underruns = 0;
    this.port.onmessage = ({ data }) => {
      if (data === "end") this.ended = true;
      else if (data === "drain") this.target = 0;
      else this.pieces.push(data), this.depth += data.length;
    };
  }

  take(into) {
    for (let at = 0; at < into.length; ) {
      const head = this.pieces[0], n = Math.min(into.length - at, head.length);
      into.set(head.subarray(0, n), at);
      at += n;
      if (n === head.length) this.pieces.shift();
      else this.pieces[0] = head.subarray(n);
    }
    this.depth -= into.length;
  }

  process(_, [output]) {
    const y = output[0];
    if (!this.playing && this.depth > 0 && this.depth >= Math.max(this.target, y.length)) this.playing = true;
    if (this.playing && this.depth >= y.length) {
      this.take(y);
      for (let i = 0; i < y.length && this.gain < 1; i++) y[i] *= this.gain = Math.min(1, this.gain + 1 / FADE);
      this.last = y[y.length - 1];
    } else {
      if (this.playing && this.target) {
        this.underruns++;
        this.target = Math.min(MOST_TARGET * sampleRate, this.target + 0.02 * sampleRate);
      }
      this.playing = false;
      this.gain = 0;
      for (let i = 0; i < y.length; i++) y[i] = this.last *= 0.95;
    }
    for (const other of output.slice(1)) other.set(y);
    this.least = Math.min(this.least, this.depth);
    if (++this.blocks % Math.round(sampleRate / 128) === 0) {
      if (this.least > this.target + SLACK * sampleRate) this.skip(Math.floor(this.least - this.target));
      this.least = Infinity;
    }
    if (this.blocks % 24 === 0) this.port.postMessage({ depth: this.depth / sampleRate, underruns: this.underruns });
    return !this.ended;
  }

  skip(n) {
    const before = new Float32Array(FADE), between = new Float32Array(Math.max(0, n - FADE)), after = new Float32Array(FADE);
    [before, between, after].forEach((part) => this.take(part));
    for (let i = 0; i < FADE; i++) before[i] = before[i] * (1 - i / FADE) + after[i] * (i / FADE);
    this.pieces.unshift(before);
    this.depth += FADE;
  }
}

registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
