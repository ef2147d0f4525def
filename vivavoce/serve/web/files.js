// Converting a recording: it goes up, and comes back as it is made; both show as progress.
import { NO_SERVER, authorization, sentence } from "./api.js";
import { entry } from "./recorder.js";
import { chosen, drop } from "./voices.js";

const $ = (id) => document.getElementById(id);
const SENDING = 10; // per cent of the bar
let job = null, limits = null;

export function filesOf(about) {
  limits = about.upload;
  $("file-limit").textContent = ` (up to ${Math.round(limits.bytes / 2 ** 20)} MB and ${Math.round(limits.seconds / 60)} minutes)`;
}

function progress(text, percent) {
  $("job").hidden = false;
  $("job-text").textContent = text;
  $("job-bar").value = percent;
}

function convert(file) {
  const voice = chosen();
  if (!voice || job) return;
  if (limits && file.size > limits.bytes) return failed(`${file.name} is larger than the ${Math.round(limits.bytes / 2 ** 20)} MB that this server takes. Cut it, or use the command line.`);
  job = new XMLHttpRequest();
  const words = new URLSearchParams({ voice: voice.value, name: file.name }), name = voice.dataset.name;
  job.open("POST", `convert?${words}`);
  for (const [key, value] of Object.entries(authorization())) job.setRequestHeader(key, value);
  job.responseType = "blob";
  job.upload.onprogress = ({ loaded, total }) => progress(`Sending ${file.name}…`, (SENDING * loaded) / total);
  job.upload.onload = () => progress(`Listening to ${file.name}…`, SENDING);
  job.onprogress = ({ loaded, total }) => {
    if (job.status === 200) progress(`Converting ${file.name}: ${Math.round((100 * loaded) / total)} %`, SENDING + ((100 - SENDING) * loaded) / total);
  };
  job.onload = async () => {
    if (job.status !== 200) return failed(sentence(JSON.parse(await job.response.text()).error.message));
    const out = `${file.name.replace(/\.[^.]*$/, "")}.${name}.wav`;
    $("converted").prepend(entry(`${file.name} as ${name}`, [["Source", file, file.name], ["Converted", job.response, out]]));
    done();
  };
  job.onerror = () => failed(job.status === 200 ? "The conversion broke off. Try again." : NO_SERVER);
  job.onabort = done;
  progress(`Sending ${file.name}…`, 0);
  $("job-cancel").textContent = "Cancel";
  job.send(file);
}

function failed(text) {
  progress(text, 0);
  $("job-bar").hidden = true;
  $("job-cancel").textContent = "Close";
  job = null;
}

function done() {
  job = null;
  $("job").hidden = true;
  $("job-bar").hidden = false;
}

$("file").onchange = ({ target }) => { if (target.files.length) done(), convert(target.files[0]); target.value = ""; };
$("job-cancel").onclick = () => (job ? job.abort() : done());
drop($("file-drop"), (file) => { if (!job) done(), convert(file); });
