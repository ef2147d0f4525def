"""A source and its conversion on one time axis: spectrograms with F0, vocal events, both melodies together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vivavoce.core.resample import resample
from vivavoce.eval.judges import RATE, EventJudge, JudgeError, PitchJudge
from vivavoce.eval.judges.events import spans_of
from vivavoce.eval.report.media import excerpt, raster
from vivavoce.eval.report.svg import Axis, document, number, tag

WIDTH, GUTTER, RIGHT = 520.0, 50.0, 14.0
TALL, EVENTS_TALL, MELODY_TALL = 88.0, 17.0, 76.0
LOW, HIGH, ROWS, COLUMNS = 60.0, 7000.0, 96, 560
TICKS = (100, 500, 1000, 2000, 4000)  # Hz
REACH = 7.0  # semitones about a voice's median that the melody lane shows at least

J = TypeVar("J")


def mel(hz: float | np.ndarray) -> float | np.ndarray:
    """HTK's mel scale."""
    return 2595.0 * np.log10(1.0 + hz / 700.0)


@dataclass(frozen=True)
class Heard:
    """What is drawn of one clip, 16 kHz."""

    seconds: float
    shades: np.ndarray  # [ROWS, columns] 0 (loud, ink) to 255 (paper)
    times: np.ndarray  # s, [frames]
    hz: np.ndarray  # NaN where unvoiced
    events: dict[str, list[tuple[float, float]]]  # label -> (start, end) in s


class Listener:
    """Draws pairs; without a pitch tracker or a tagger the picture goes without their lines, and says so."""

    def __init__(self) -> None:
        self.absent: list[str] = []
        self._pitch, self._events = self._have(PitchJudge), self._have(EventJudge)

    def _have(self, judge: Callable[[], J]) -> J | None:
        try:
            return judge()
        except JudgeError as e:
            self.absent.append(str(e))
            return None

    def hear(self, path: str | Path) -> Heard:
        """Raises AudioError."""
        x, rate, _ = excerpt(path)
        wave = (x if rate == RATE else resample(x[None], rate, RATE)[0]).numpy()
        times, hz = np.empty(0), np.empty(0)
        silent = float(np.abs(wave).max(initial=0)) < 1e-4
        if self._pitch is not None and not silent:
            times, hz, on = self._pitch.track(wave)
            hz = np.where(on, hz, np.nan)
        events: dict[str, list[tuple[float, float]]] = {}
        if self._events is not None and not silent and len(wave) >= RATE * self._events.min_seconds:
            events = spans_of(self._events.analyse(wave))
        return Heard(len(wave) / RATE, spectrogram(wave), times, hz, events)

    def draw(self, source: str | Path, converted: str | Path, name: str) -> str:
        """The picture as inline SVG; `name` is what a screen reader calls the clip. Raises AudioError."""
        a, b = self.hear(source), self.hear(converted)
        time = Axis(0.0, max(a.seconds, b.seconds, 0.05), GUTTER, WIDTH - GUTTER - RIGHT)
        body: list[str] = []
        y = 4.0
        for side, heard in (("source", a), ("converted", b)):
            body += _spectrum(side, heard, time, y)
            y += TALL + 3
            body += _events(side, heard, time, y)
            y += EVENTS_TALL + 5
        body += _melody(a, b, time, y)
        y += MELODY_TALL
        for t in time.ticks(7):
            x, text = time.at(t), number(t) + " s" * (t == 0)
            body.append(tag("path", d=f"M{x:.1f} {y:.1f}v4", class_="base"))
            body.append(tag("text", text, x=x, y=y + 16, class_="t-tick", text_anchor="middle"))
        body.append(tag("path", d=f"M{GUTTER} 4V{y:.1f}", class_="playhead", data_from=GUTTER,
                        data_width=time.width, data_seconds=time.right))  # fmt: skip
        title = f"{name}: {_said(a)} in the source, {_said(b)} in the converted clip"
        return document(WIDTH, y + 22, body, title, "aligned")


def _said(heard: Heard) -> str:
    found = ", ".join(f"{k} {s[0][0]:.1f} to {s[0][1]:.1f} s" for k, s in heard.events.items())
    return found or "no vocal event"


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """Grey values [ROWS, columns], top row HIGH Hz, mel-spaced; ink from the clip's loudest bin to 60 dB below."""
    window = 512
    hop = max(160, -(-len(wave) // COLUMNS))
    x = np.pad(wave.astype(np.float64), (window // 2, window // 2 + hop))
    x = x + 0.0
    x[1:] -= 0.9 * x[:-1].copy()  # pre-emphasis: the top of a voice is 20 dB weaker
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, 2048)) ** 2
    edges = np.linspace(mel(HIGH), mel(LOW), ROWS)
    bins = 700.0 * (10.0 ** (edges / 2595.0) - 1.0) * 2048 / RATE
    low = np.floor(bins).astype(int)
    picked = power[:, low] + (bins - low) * (power[:, low + 1] - power[:, low])
    level = 10 * np.log10(np.maximum(picked, 1e-12))
    level = np.clip((level - max(level.max(), -60.0) + 60.0) / 60.0, 0.0, 1.0)
    return (255.0 * (1.0 - level**1.2)).T


def _spectrum(side: str, heard: Heard, time: Axis, y: float) -> list[str]:
    pitch = Axis(float(mel(HIGH)), float(mel(LOW)), y, TALL)
    image = raster(heard.shades)
    width = time.at(heard.seconds) - GUTTER
    out = [tag("rect", x=GUTTER, y=y, width=time.width, height=TALL, class_="stage")]
    if image is not None:
        out.append(tag("image", href=image, x=GUTTER, y=y, width=width, height=TALL, preserveAspectRatio="none",
                       class_="spectrogram"))  # fmt: skip
    out.append(tag("text", side, x=GUTTER + 6, y=y + 14, class_="t-side"))
    for hz in TICKS:
        at = pitch.at(float(mel(hz)))
        out.append(tag("text", f"{hz / 1000:g} kHz" if hz >= 1000 else f"{hz} Hz", x=GUTTER - 6, y=at + 3.5,
                       class_="t-tick", text_anchor="end"))  # fmt: skip
    points = [(time.at(t), pitch.at(float(mel(f)))) for t, f in zip(heard.times, heard.hz)]
    out += _lines(points, f"f0 f0-{side}")
    return out


def _events(side: str, heard: Heard, time: Axis, y: float) -> list[str]:
    out = [tag("path", d=f"M{GUTTER} {y + EVENTS_TALL - 1}H{WIDTH - RIGHT}", class_="rule")]
    taken: list[float] = []
    for label, spans in heard.events.items():
        for start, end in spans:
            a, b = time.at(start), time.at(end)
            out.append(tag("rect", x=a, y=y, width=max(b - a, 2.0), height=EVENTS_TALL - 3, rx=2,
                           class_=f"event event-{side}"))  # fmt: skip
            if b - a > 8 + 6 * len(label) and not any(abs(a - t) < 44 for t in taken):
                out.append(tag("text", label, x=a + 4, y=y + 10.5, class_="t-event"))
                taken.append(a)
    if not heard.events:
        out.append(tag("text", "no vocal event heard", x=GUTTER, y=y + 10.5, class_="t-none"))
    return out


def _melody(a: Heard, b: Heard, time: Axis, y: float) -> list[str]:
    """Both lines in semitones about their own voice's median: a transposed melody lies on its source."""
    lines = []
    for side, heard in (("source", a), ("converted", b)):
        voiced = heard.hz[np.isfinite(heard.hz)]
        if len(voiced):
            lines.append((side, heard.times, 12 * np.log2(heard.hz / np.median(voiced))))
    reach = max([REACH, *(1.3 * float(np.nanmax(np.abs(v))) for _, _, v in lines)])
    axis = Axis(reach, -reach, y, MELODY_TALL)
    out = [tag("rect", x=GUTTER, y=y, width=time.width, height=MELODY_TALL, class_="stage"),
           tag("path", d=f"M{GUTTER} {axis.at(0):.1f}H{WIDTH - RIGHT}", class_="zero"),
           tag("text", "melody, semitones", x=GUTTER + 6, y=y + 14, class_="t-side")]  # fmt: skip
    for v in (-12, 0, 12) if reach > 13 else (-6, 0, 6):
        out.append(tag("text", f"{v:+d}".replace("-", "−") if v else "0", x=GUTTER - 6, y=axis.at(v) + 3.5,
                       class_="t-tick", text_anchor="end"))  # fmt: skip
    if not lines:
        out.append(tag("text", "no voiced frame", x=GUTTER + 6, y=y + MELODY_TALL / 2 + 4, class_="t-none"))
    for side, times, semitones in lines:
        out += _lines([(time.at(t), axis.at(v)) for t, v in zip(times, semitones)], f"melody melody-{side}")
    return out


def _lines(points: Iterable[tuple[float, float]], class_: str) -> list[str]:
    """A path that breaks where a point is NaN."""
    d, pen = "", False
    for x, y in points:
        if np.isfinite(y):
            d += f"{'L' if pen else 'M'}{x:.1f} {y:.1f}"
        pen = bool(np.isfinite(y))
    return [tag("path", d=d, class_=class_)] if d else []


