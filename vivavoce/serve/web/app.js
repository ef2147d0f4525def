// Wires the page together.
import { NO_SERVER, request, setToken } from "./api.js";
import { filesOf } from "./files.js";
import { showLatency } from "./latency.js";
import { Live } from "./live.js";
import { microphones } from "./microphone.js";
import { Recorder, entry } from "./recorder.js";
import { Scope } from "./scope.js";
import { chosen, showVoices } from "./voices.js";

const $ = (id) => document.getElementById(id);
const input = new Scope($("in-scope"), $("in-meter"), $("in-db"));
const output = new Scope($("out-scope"), $("out-meter"), $("out-db"));
let live = null, recorder = null, take = 0, loaded = false;

// ---- what is wrong, and whether the server is there

function alert(text) {
  $("alert-text").textContent = text;
  $("alert").hidden = !text;
}
const fail = (error) => alert(error.message);
$("alert-close").onclick = () => alert("");

function state(name) {
  document.body.dataset.state = name;
  $("go-text").textContent = { idle: "Go live", starting: "Starting…", live: "Stop", stopping: "Stopping…" }[name];
  $("go").disabled = name === "starting" || name === "stopping" || !loaded;
  $("record").disabled = name !== "live";
  $("delay").disabled = $("echo").disabled = $("microphone").disabled = name !== "idle";
}

async function look() {
  let text = "The server does not answer", ok = false;
  try {
    const health = await (await fetch("healthz")).json();
    ok = health.status === "ok";
    const free = health.max_streams - health.streams;
    text = !ok ? "The server is restarting a part of itself" : live ? "Connected" : free > 0 ? `Ready, ${free} of ${health.max_streams} places free` : "All places are taken";
    if ($("alert-text").textContent === NO_SERVER) alert("");
    if (!loaded) await load();
  } catch { /* told below, and tried again */ }
  $("server").dataset.ok = ok ? "yes" : "no";
  if ($("server-text").textContent !== text) $("server-text").textContent = text;
  setTimeout(look, 3000);
}

async function load() {
  try {
    const about = await showVoices(changeVoice, fail);
    $("delay").replaceChildren(...Array.from({ length: about.max_delay + 1 }, (_, d) => new Option(d ? `${20 * d} ms` : "none, quickest", d, d === 0, d === 0)));
    filesOf(about);
    loaded = true;
    named();
    if (!live) state("idle");
  } catch (error) {
    if (error.code !== "bad-token") return fail(error);
    const given = prompt("This server asks for an access token:");
    if (given) setToken(given);
    else alert("This server asks for an access token. Reload the page to enter it.");
  }
}

// ---- live

async function start() {
  alert("");
  state("starting");
  live = new Live();
  const mine = live;
  let fell = 0;
  mine.addEventListener("late", ({ detail }) => {
    if (detail.on) {
      fell = detail.at;
      alert("The server cannot keep up. You hear yourself unconverted until it has caught up.");
    } else {
      const seconds = ((detail.at - fell) / mine.rate).toFixed(1);
      alert(`The server fell behind: for ${seconds} s you heard yourself, unconverted. Now it converts again.`);
    }
  });
  mine.addEventListener("notice", ({ detail }) => alert(detail.message));
  mine.addEventListener("output", ({ detail }) => passing(detail.passed));
  mine.addEventListener("ended", ({ detail }) => {
    if (live !== mine) return;
    live = null;
    state("idle");
    [input, output].forEach((scope) => scope.rest());
    passing(false);
    if (detail.error) fail(detail.error);
  });
  try {
    await mine.start({ voice: chosen().value, delay: Number($("delay").value), echo: $("echo").checked, device: $("microphone").value });
    state("live");
    if (original()) mine.control({ type: "bypass", on: true });
    listMicrophones();
    requestAnimationFrame(draw);
  } catch (error) {
    live = null;
    state("idle");
    fail(error);
  }
}

$("go").onclick = () => {
  if (!live) return start();
  state("stopping");
  finishTake();
  live.stop();
};

const original = () => $("hear-original").checked;
$("bypass").onchange = () => { named(); live?.control({ type: "bypass", on: original() }); };

function changeVoice(voice) {
  named();
  live?.control({ type: "voice", voice: voice.value });
}

function named() {
  const passed = $("out").dataset.passed === "yes" || original();
  $("out-name").textContent = passed ? "You, unconverted" : chosen()?.dataset.name ?? "Converted";
}

function passing(yes) {
  if (($("out").dataset.passed === "yes") === yes) return;
  $("out").dataset.passed = yes ? "yes" : "no";
  named();
}

let budgeted = 0;
function draw(now) {
  if (!live?.outputScope) return;
  input.draw(live.inputScope, "--soft");
  output.draw(live.outputScope, $("out").dataset.passed === "yes" ? "--soft" : "--accent");
  if (now - budgeted > 500) {
    budgeted = now;
    if (live.state === "live") showLatency(live);
    if (recorder) $("record-text").textContent = `Stop recording, ${Math.floor((live.sent - recorder.from) / live.rate)} s`;
  }
  requestAnimationFrame(draw);
}

async function listMicrophones() {
  const known = $("microphone").value, found = await microphones();
  $("microphone").replaceChildren(new Option("Browser's choice", ""), ...found.map((d) => new Option(d.label, d.deviceId, false, d.deviceId === known)));
}

// ---- takes

$("record").onclick = () => (recorder ? finishTake() : beginTake());

function beginTake() {
  recorder = new Recorder(live);
  recorder.voice = chosen().dataset.name;
  $("record").setAttribute("aria-pressed", "true");
  $("record-text").textContent = "Stop recording";
  recorder.done.then(showTake);
}

function finishTake() {
  recorder?.stop();
  recorder = null;
  $("record").setAttribute("aria-pressed", "false");
  $("record-text").textContent = "Record";
}

function showTake(made) {
  finishTake();
  if (!made) return;
  const name = `take-${++take}`, seconds = made.samples / made.rate, part = made.passed / made.rate;
  const note = part > 0.02 ? `${part.toFixed(1)} s of it are your own voice: bypassed, or the server was late.` : "";
  const item = entry(`Take ${take}, ${seconds.toFixed(1)} s`, [["Source", made.source, `${name}-source.wav`], ["Converted", made.converted, `${name}-converted.wav`]], note);
  item.dataset.samples = made.samples;
  item.dataset.passed = made.passed;
  $("takes").prepend(item);
  $("recordings").hidden = false;
}

document.addEventListener("enrolled", async ({ detail }) => {
  await showVoices(changeVoice, fail).catch(fail);
  const box = document.querySelector(`input[name=voice][value="${CSS.escape(detail.id)}"]`);
  if (box) box.checked = true, box.focus(), changeVoice(box);
});

state("idle");
look();
