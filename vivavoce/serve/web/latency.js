// The latency budget: what the server says of its algorithm, and what is measured here.
const ITEMS = {
  chunk: ["Chunk", "your browser sends this much at a time"],
  frame: ["Frame", "the model works on whole frames of 20 ms"],
  look_ahead: ["Look-ahead of the units", "hears a little further before it decides what a sound is"],
  delay: ["Look-ahead of the model", "set under Options"],
  overlap: ["Synthesis overlap", "each frame is blended into the next"],
  resampling: ["Resampling", "between your sound card and the model"],
};

const time = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

export function showLatency(live) {
  const { total, ...parts } = live.ready.latency, trip = live.trip;
  const rows = Object.entries(parts).filter(([, ms]) => ms > 0.05).map(([key, ms]) => [...(ITEMS[key] ?? [key, ""]), ms, "known"]);
  if (trip !== null) rows.push(["Computing and network", "measured", Math.max(0, parts.chunk + trip - total), "measured"]);
  rows.push(["Playback buffer", live.underruns ? `measured; ran dry ${live.underruns} time${live.underruns > 1 ? "s" : ""}` : "measured", live.buffer, "measured"]);
  rows.push(["Sound card", "as the browser reports it", live.device, "measured"]);
  const sum = rows.reduce((all, row) => all + row[2], 0);
  document.getElementById("latency-total").textContent = trip === null ? "" : time(sum);
  document.getElementById("latency-text").textContent =
    trip === null ? "Measuring latency…" : `from mouth to ear: ${Math.round(total)} ms of it algorithm, the rest measured`;
  document.getElementById("latency-bar").replaceChildren(...rows.map(([, , ms, kind], i) => {
    const part = document.createElement("span");
    part.dataset.kind = kind;
    part.style.width = `${(100 * ms) / sum}%`;
    part.style.opacity = kind === "known" ? 0.4 + 0.5 * (i % 2) : 0.55 + 0.45 * (i % 2);
    return part;
  }));
  document.getElementById("latency-rows").replaceChildren(...[...rows, ["Together", "", sum, "sum"]].map(([name, why, ms, kind]) => {
    const row = document.createElement("tr"), head = document.createElement("th"), value = document.createElement("td");
    row.className = kind;
    head.scope = "row";
    head.append(name, why ? Object.assign(document.createElement("small"), { textContent: why }) : "");
    value.textContent = time(ms);
    row.append(head, value);
    return row;
  }));
}
