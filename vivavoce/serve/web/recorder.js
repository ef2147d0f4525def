// A take: the same stretch of the source and of what came back, sample for sample.
import { wav } from "./protocol.js";

const MOST_MINUTES = 20;

export class Recorder {
  source = [];
  converted = [];
  passed = 0; // samples of the take that came back unconverted

  constructor(live) {
    this.rate = live.rate;
    this.from = live.sent;
    this.to = Infinity;
    this.gotten = this.from; // of what came back
    this.done = new Promise((resolve) => (this.resolve = resolve));
    this.onInput = ({ detail }) => this.input(detail, live);
    this.onOutput = ({ detail }) => this.output(detail);
    this.onEnded = () => this.finish();
    live.addEventListener("input", this.onInput);
    live.addEventListener("output", this.onOutput);
    live.addEventListener("ended", this.onEnded);
    this.live = live;
  }

  input({ samples, at }) {
    if (at < this.to) this.source.push(samples.slice());
    if (at - this.from > 60 * MOST_MINUTES * this.rate) this.stop();
  }

  output({ samples, at, passed }) {
    const part = samples.slice(Math.max(0, this.from - at), Math.max(0, Math.min(samples.length, this.to - at)));
    if (part.length) {
      this.converted.push(part);
      this.gotten += part.length;
      if (passed) this.passed += part.length;
    }
    if (this.gotten >= this.to) this.finish();
  }

  // The take ends here; what was said comes back a little later.
  stop() {
    this.to = Math.min(this.to, this.live.sent);
    if (this.gotten >= this.to) this.finish();
    return this.done;
  }

  finish() {
    for (const [type, f] of [["input", this.onInput], ["output", this.onOutput], ["ended", this.onEnded]]) this.live.removeEventListener(type, f);
    const n = Math.min(this.to, this.gotten) - this.from; // a stream that broke off has no tail
    const cut = (pieces) => wav([joined(pieces).subarray(0, n)], this.rate);
    this.resolve(n > 0 ? { source: cut(this.source), converted: cut(this.converted), samples: n, rate: this.rate, passed: Math.min(this.passed, n) } : null);
  }
}

function joined(pieces) {
  const all = new Float32Array(pieces.reduce((sum, x) => sum + x.length, 0));
  let at = 0;
  for (const piece of pieces) all.set(piece, at), at += piece.length;
  return all;
}

// An entry of a list of takes: players and downloads, `tracks` being [label, blob, file name].
export function entry(title, tracks, note = "") {
  const item = document.createElement("li"), heading = document.createElement("h3");
  item.className = "take";
  heading.textContent = title;
  item.append(heading);
  for (const [label, blob, name] of tracks) {
    const row = document.createElement("div"), audio = new Audio(URL.createObjectURL(blob)), link = document.createElement("a"), text = document.createElement("span");
    row.className = "track";
    text.textContent = label;
    audio.controls = true;
    audio.setAttribute("aria-label", `${title}, ${label}`);
    link.href = audio.src;
    link.download = name;
    link.className = "button";
    link.textContent = "Download";
    link.setAttribute("aria-label", `Download ${name}`);
    row.append(text, audio, link);
    item.append(row);
  }
  if (note) item.append(Object.assign(document.createElement("small"), { textContent: note }));
  return item;
}
