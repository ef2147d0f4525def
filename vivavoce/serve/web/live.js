// One live stream: microphone -> socket -> jitter buffer -> loudspeaker. Says what happens by events:
// ready, input, output, late, voice, bypass, notice, ended.
import { NO_SERVER, ServerError, sentence, token } from "./api.js";
import { capture, openMicrophone } from "./microphone.js";
import { LATE, PASSED, VERSION, pack, unpack } from "./protocol.js";

const CHUNK = 0.04; // seconds sent at a time
const TARGET = 0.06; // seconds that the jitter buffer holds at first

export class Live extends EventTarget {
  sent = 0; // samples
  received = 0;
  frames = 0;
  waiting = []; // [sample after a chunk, when it was sent]: for the round trip
  trips = []; // the last round trips, ms
  buffer = 0; // ms in the jitter buffer
  underruns = 0;
  state = "starting";

  tell(type, detail = {}) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Resolves once the server is ready. Rejects with an Error that says what is wrong, in a sentence.
  async start({ voice, delay, echo, device }) {
    this.microphone = await openMicrophone({ echo, device });
    const { context, source } = this.microphone;
    this.rate = context.sampleRate;
    try {
      await this.connect({ voice, delay });
    } catch (error) {
      this.close();
      throw error;
    }
    this.player = new AudioWorkletNode(context, "playback", { numberOfInputs: 0, outputChannelCount: [2], processorOptions: { target: TARGET * this.rate } });
    this.player.port.onmessage = ({ data }) => { this.buffer = 1000 * data.depth; this.underruns = data.underruns; };
    this.inputScope = context.createAnalyser();
    this.outputScope = context.createAnalyser();
    source.connect(this.inputScope);
    this.player.connect(this.outputScope).connect(context.destination);
    this.microphone.track.addEventListener("ended", () => this.fail("The microphone was unplugged, or its permission was withdrawn."));
    this.catcher = capture(context, source, Math.round(CHUNK * this.rate), (chunk) => this.send(chunk));
    this.state = "live";
  }

  connect({ voice, delay }) {
    return new Promise((resolve, reject) => {
      const socket = (this.socket = new WebSocket(new URL("stream", location.href.replace(/^http/, "ws"))));
      socket.binaryType = "arraybuffer";
      socket.onopen = () => socket.send(JSON.stringify({ type: "hello", version: VERSION, voice, delay, rate: this.rate, chunk: 1000 * CHUNK, token: token() }));
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return this.take(unpack(data));
        const m = JSON.parse(data);
        if (m.type === "ready") { this.ready = m; resolve(); this.tell("ready", m); }
        else if (m.type === "error") this.error = new ServerError(m.code, sentence(m.message));
        else this.tell(m.type, m);
      };
      socket.onclose = ({ code, reason }) => {
        const error = this.error ?? (this.state === "stopping" && code === 1000 ? null : new ServerError("closed", reason ? sentence(reason) : NO_SERVER));
        reject(error);
        this.end(error);
      };
    });
  }

  send(chunk) {
    if (this.state !== "live" || this.socket.readyState !== WebSocket.OPEN) return;
    this.socket.send(pack(chunk, this.frames++, this.rate));
    this.tell("input", { samples: chunk, at: this.sent });
    this.sent += chunk.length;
    this.waiting.push([this.sent, performance.now()]);
  }

  take({ samples, flags }) {
    const passed = Boolean(flags & PASSED), late = Boolean(flags & LATE);
    this.tell("output", { samples, at: this.received, passed, late });
    this.received += samples.length;
    const now = performance.now();
    while (this.waiting.length && this.waiting[0][0] <= this.received) this.trips.push(now - this.waiting.shift()[1]);
    this.trips.splice(0, this.trips.length - 50);
    if (samples.length && this.player) this.player.port.postMessage(samples.slice());
  }

  // Median time from a chunk's last sample leaving to its coming back, ms; null before the first.
  get trip() {
    return this.trips.length ? [...this.trips].sort((a, b) => a - b)[this.trips.length >> 1] : null;
  }

  // What the audio system adds behind the jitter buffer, ms.
  get device() {
    const { baseLatency = 0, outputLatency = 0 } = this.microphone.context;
    return 1000 * (baseLatency + outputLatency);
  }

  control(message) {
    if (this.state === "live" && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  // Nothing more goes in; the tail still comes out.
  stop() {
    if (this.state !== "live") return;
    this.control({ type: "bye" });
    this.state = "stopping";
    this.microphone.track.stop();
    this.player.port.postMessage("drain");
  }

  fail(text) {
    this.error ??= new Error(text);
    this.socket.close(1000);
  }

  end(error) {
    if (this.state === "ended") return;
    const played = this.state === "stopping" ? this.buffer + 300 : 0; // let the tail be heard
    this.state = "ended";
    this.tell("ended", { error });
    setTimeout(() => this.close(), played);
  }

  close() {
    this.catcher?.port.postMessage("end");
    this.player?.port.postMessage("end");
    this.microphone?.close();
    if (this.socket && this.socket.readyState <= WebSocket.OPEN) this.socket.close(1000);
  }
}
