// The voices to choose from, and the dialog that enrols another.
import { json, request } from "./api.js";
import { capture, openMicrophone } from "./microphone.js";
import { wav } from "./protocol.js";

const SECONDS = 5;
const $ = (id) => document.getElementById(id);
const PLAY = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5.5v13l11-6.5z"/></svg>';
let recording = null; // the Blob or File that is to be enrolled
let playing = null;

const mine = () => JSON.parse(sessionStorage.getItem("voices") ?? "[]");
const keep = (voices) => sessionStorage.setItem("voices", JSON.stringify(voices));
const register = (hz) => `${Math.round(hz)} Hz, ${hz < 145 ? "low" : hz < 185 ? "middle" : "high"}`;

export const chosen = () => document.querySelector("input[name=voice]:checked");

// Fill the list; `changed` is called when another voice is chosen. Returns what the server said.
export async function showVoices(changed, fail) {
  const about = await json("voices");
  const own = [];
  for (const voice of mine()) // those the server still knows
    own.push(await json(`voices/${encodeURIComponent(voice.id)}`).catch(() => null));
  keep(own.filter(Boolean));
  const before = chosen()?.value, all = [...about.voices, ...own.filter(Boolean)];
  $("voices").replaceChildren(...all.map((voice) => card(voice, fail)), adder());
  const pick = $("voices").querySelector(`input[value="${CSS.escape(before ?? "")}"]`) ?? $("voices").querySelector("input");
  if (pick) pick.checked = true;
  $("voices").onchange = () => changed(chosen());
  return about;
}

function card(voice, fail) {
  const box = document.createElement("div"), input = document.createElement("input"), label = document.createElement("label"), hear = document.createElement("button");
  box.className = "voice";
  Object.assign(input, { type: "radio", name: "voice", value: voice.id, id: `voice-${voice.id}` });
  input.dataset.name = voice.name;
  label.htmlFor = input.id;
  label.append(Object.assign(document.createElement("b"), { textContent: voice.name }), Object.assign(document.createElement("small"), { textContent: register(voice.register_hz) }));
  Object.assign(hear, { type: "button", className: "hear", innerHTML: PLAY });
  hear.setAttribute("aria-label", `Hear ${voice.name}`);
  hear.onclick = async () => {
    try {
      playing?.pause();
      const sound = await (await request(`voices/${encodeURIComponent(voice.id)}/preview`)).blob();
      playing = new Audio(URL.createObjectURL(sound));
      playing.onended = () => URL.revokeObjectURL(playing.src);
      await playing.play();
    } catch (error) { fail(error); }
  };
  box.append(input, label, hear);
  return box;
}

function adder() {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "add", id: "add-voice", textContent: "+ Add a voice" });
  button.onclick = () => { $("enrol").showModal(); };
  return button;
}

// ---- the dialog

const say = (text) => ($("enrol-status").textContent = text);

function take(blob, name) {
  recording = blob;
  $("enrol-audio").hidden = name.endsWith(".voice");
  $("enrol-audio").src = URL.createObjectURL(blob);
  if (!$("enrol-name").value && blob instanceof File) $("enrol-name").value = name.replace(/\.[^.]*$/, "").slice(0, 60);
  say(name.endsWith(".voice") ? `${name} is a voice file.` : "Listen to it: one person, no music, no echo?");
  allow();
}

const allow = () => ($("enrol-add").disabled = !(recording && $("enrol-consent").checked));

async function record() {
  const button = $("enrol-record"), bar = $("enrol-bar");
  button.disabled = true;
  say("");
  let microphone;
  try {
    microphone = await openMicrophone();
    const { context, source } = microphone, pieces = [], need = SECONDS * context.sampleRate;
    bar.hidden = false;
    $("enrol-record-text").textContent = "Listening…";
    await new Promise((resolve) => {
      let n = 0;
      const node = capture(context, source, Math.round(context.sampleRate / 20), (chunk) => {
        pieces.push(chunk);
        n += chunk.length;
        bar.value = n / context.sampleRate;
        if (n >= need || !$("enrol").open) node.port.postMessage("end"), resolve();
      });
    });
    take(wav(pieces, context.sampleRate), "recording.wav");
  } catch (error) {
    say(error.message);
  } finally {
    microphone?.close();
    bar.hidden = true;
    button.disabled = false;
    $("enrol-record-text").textContent = "Record 5 seconds";
  }
}

async function enrol(event) {
  event.preventDefault();
  if ($("enrol-add").disabled) return;
  $("enrol-add").disabled = true;
  say("Listening to the voice…");
  try {
    const words = new URLSearchParams({ name: $("enrol-name").value.trim() || "My voice", consent: `confirmed on the page, ${new Date().toISOString().slice(0, 10)}` });
    const voice = await json(`voices?${words}`, { method: "POST", body: recording });
    keep([...mine(), voice]);
    $("enrol").close();
    document.dispatchEvent(new CustomEvent("enrolled", { detail: voice }));
  } catch (error) {
    say(error.message);
    allow();
  }
}

export function drop(zone, take) {
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.dataset.over = "yes"; });
  zone.addEventListener("dragleave", () => delete zone.dataset.over);
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    delete zone.dataset.over;
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

$("enrol-record").onclick = record;
$("enrol-file").onchange = ({ target }) => { if (target.files.length) take(target.files[0], target.files[0].name); target.value = ""; };
$("enrol-consent").onchange = allow;
$("enrol-form").onsubmit = enrol;
$("enrol-cancel").onclick = () => $("enrol").close();
$("enrol").onclose = () => {
  recording = null;
  $("enrol-form").reset();
  $("enrol-audio").pause();
  $("enrol-audio").hidden = true;
  say("");
  allow();
};
drop($("enrol-drop"), (file) => take(file, file.name));
