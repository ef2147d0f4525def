import { NO_SERVER } from "./api.js";

// One way to the microphone, and what is said when it is barred.

const WHY = {
  NotAllowedError: "The browser may not use your microphone. Allow it (the symbol beside the address), then try again.",
  NotFoundError: "No microphone is connected. Plug one in, then try again.",
  NotReadableError: "The microphone is in use by another program, or the system refuses it. Close the other program, then try again.",
  OverconstrainedError: "The chosen microphone is gone. Choose another under Options.",
};

// { context, source, close() }; everything the browser would do to the sound is off, because it eats laughs.
export async function openMicrophone({ echo = false, device = "" } = {}) {
  if (!navigator.mediaDevices?.getUserMedia)
    throw new Error("Browsers give a microphone only to pages that come by https or from localhost. Ask whoever runs this server for https.");
  const audio = { echoCancellation: echo, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  if (device) audio.deviceId = { exact: device };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(WHY[error.name] ?? `The microphone cannot be opened (${error.name}).`);
  }
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    await context.audioWorklet.addModule("worklet.js");
    await context.resume();
  } catch {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    throw new Error(NO_SERVER); // where the worklet is fetched from
  }
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    if (context.state !== "closed") context.close();
  };
  return { context, source: context.createMediaStreamSource(stream), track: stream.getAudioTracks()[0], close };
}

// A node that hands over chunks of `size` samples.
export function capture(context, source, size, take) {
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit", processorOptions: { size } });
  node.port.onmessage = ({ data }) => take(data);
  source.connect(node);
  return node;
}

export async function microphones() {
  const all = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return all.filter((d) => d.kind === "audioinput" && d.deviceId && d.label);
}
