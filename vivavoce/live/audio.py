"""Devices through PortAudio (the `sounddevice` package): found by name, opened at a rate that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vivavoce.core.errors import AudioError

Block = Callable[[np.ndarray], None]  # takes a microphone block [n], or fills a loudspeaker block [n]
USUAL_RATES = (48000, 44100, 16000)


def portaudio() -> Any:
    """The `sounddevice` module. Raises AudioError where it, or PortAudio, is not installed."""
    try:
        import sounddevice
    except ImportError:
        raise AudioError("live needs the package sounddevice; pip install 'vivavoce[live]'") from None
    except OSError:  # what it raises where the library is missing
        raise AudioError("live needs the PortAudio library; on Debian: apt install libportaudio2") from None
    return sounddevice


def devices() -> list[dict]:
    """All devices: index, name, host (the audio system), inputs, outputs, rate in Hz, default ("in", "out" or both)."""
    sd = portaudio()
    hosts, (mic, speaker) = sd.query_hostapis(), sd.default.device
    return [
        {"index": i, "name": d["name"], "host": hosts[d["hostapi"]]["name"], "inputs": d["max_input_channels"],
         "outputs": d["max_output_channels"], "rate": int(d["default_samplerate"]),
         "default": " ".join(["in"] * (i == mic) + ["out"] * (i == speaker))}
        for i, d in enumerate(sd.query_devices())
    ]  # fmt: skip


def find(wanted: str | None, kind: str) -> dict:
    """A device by number, name or a part of its name (case aside); without one, the default.

    Args:
        kind: "input" or "output".

    Raises:
        AudioError: none, or several, of that name.
    """
    able = [d for d in devices() if d[f"{kind}s"] > 0]
    if not able:
        raise AudioError(f"no {kind} device at all; is a sound server running? See `vivavoce live --list-devices`")
    if wanted is None:
        return next((d for d in able if kind[:-3] in d["default"].split()), able[0])
    if wanted.isdecimal():
        found = [d for d in able if d["index"] == int(wanted)]
    else:
        found = [d for d in able if d["name"] == wanted] or [d for d in able if wanted.lower() in d["name"].lower()]
    if not found:
        raise AudioError(f"no {kind} device {wanted!r}; there are: {_names(able)}")
    if len(found) > 1:
        raise AudioError(f"{kind} device {wanted!r} could be {_names(found)}; give a number")
    return found[0]


def _names(found: list[dict]) -> str:
    return ", ".join(f"{d['index']} ({d['name']})" for d in found[:8]) + ", ..." * (len(found) > 8)


class Devices:
    """A microphone and a loudspeaker, opened together.

    Args:
        mic, speaker: see `find`.
        rate: Hz; without one, the first that both take of the microphone's, the loudspeaker's and the usual ones.

    Raises:
        AudioError: no such device, or none of the rates is taken by both.
    """

    def __init__(self, mic: str | None = None, speaker: str | None = None, rate: int | None = None) -> None:
        self.mic, self.speaker = find(mic, "input"), find(speaker, "output")
        tried = [rate] if rate else list(dict.fromkeys((self.mic["rate"], self.speaker["rate"], *USUAL_RATES)))
        sd, why = portaudio(), ""
        for self.rate in tried:
            try:
                sd.check_input_settings(self.mic["index"], 1, "float32", samplerate=self.rate)
                sd.check_output_settings(self.speaker["index"], 1, "float32", samplerate=self.rate)
                break
            except sd.PortAudioError as e:
                why = _reason(e)
        else:
            hint = "leave --rate out to let them choose" if rate else "choose others with --input and --output"
            raise AudioError(f"{self.mic['name']} and {self.speaker['name']} do not both take "
                             f"{' or '.join(map(str, tried))} Hz ({why}); {hint}")  # fmt: skip
        self._streams: list[Any] = []

    @property
    def latency(self) -> tuple[float, float]:
        """Seconds that input and output add, as PortAudio states them once started."""
        mic, speaker = (float(s.latency) for s in self._streams) if self._streams else (0.0, 0.0)
        return mic, speaker

    def start(self, hear: Block, play: Block) -> None:
        """Call `hear` and `play` for every block from now on, in audio threads.

        Raises:
            AudioError: the devices cannot be opened: busy, gone, or not permitted.
        """
        sd = portaudio()

        def heard(data: np.ndarray, frames: int, time: Any, status: Any) -> None:
            hear(data[:, 0])

        def played(data: np.ndarray, frames: int, time: Any, status: Any) -> None:
            play(data[:, 0])

        # two streams, not one for both: devices may have clocks of their own, and PortAudio's duplex stream stalls
        # through ALSA's plug-in for PulseAudio
        ends = (sd.InputStream, self.mic, heard), (sd.OutputStream, self.speaker, played)
        for kind, device, callback in ends:
            try:
                self._streams.append(kind(samplerate=self.rate, device=device["index"], channels=1, dtype="float32",
                                          latency="low", callback=callback))  # fmt: skip
                self._streams[-1].start()
            except sd.PortAudioError as e:
                self.stop()
                raise AudioError(f"{device['name']} cannot be opened ({_reason(e)}): busy, unplugged, or no permission "
                                 "for the microphone") from None  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether both devices still run; false after one was unplugged."""
        return bool(self._streams) and all(s.active for s in self._streams)

    def stop(self) -> None:
        """Close both."""
        while self._streams:
            self._streams.pop().close()


def _reason(e: Exception) -> str:
    return str(e.args[0] if e.args else e).split(" [PaErrorCode")[0]
