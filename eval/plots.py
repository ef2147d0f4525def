"""Pictures: spectrogram and F0 of a source above those of its conversion, in one small PNG."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np

from vivavoce.core import audio
from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError, VivavoceError
from vivavoce.eval.judges import RATE, JudgeError, PitchJudge

MAX_BYTES = 120_000
SURFACE, INK, LINE = "#fcfcfb", "#3a3a38", "#19e3d2"


def spectrogram(wave: np.ndarray, top: float = 5000.0) -> np.ndarray:
    """dB below the clip's loudest bin, [bins up to `top` Hz, frames of 10 ms]; floor -70 dB."""
    window, hop = 512, 160
    x = np.pad(wave.astype(np.float64), (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop] * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, 1024)[:, : int(top * 1024 / RATE)]) ** 2
    return np.maximum(10 * np.log10(power / max(power.max(), 1e-12) + 1e-12), -70).T


def draw(source: str | Path, converted: str | Path, out: str | Path) -> int:
    """Write the picture (atomically); returns its size in bytes. Without swift-f0 it has no F0 lines.

    Raises:
        AudioError: a recording that cannot be read, a folder that cannot be written into.
        JudgeError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps, colors
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError as e:
        raise JudgeError(f"pictures are not available ({e}); to have them: pip install matplotlib") from None
    waves = [audio.load(p, RATE)[0].numpy() for p in (source, converted)]
    try:
        pitch: PitchJudge | None = PitchJudge()
    except JudgeError as e:
        pitch = None
        print(f"vivavoce: {e}", file=sys.stderr)
    seconds = max(len(w) for w in waves) / RATE
    figure = Figure(figsize=(8, 5), facecolor=SURFACE, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for ax, wave, title, path in zip(axes, waves, ("source", "converted"), (source, converted)):
        ax.set_facecolor("black")
        ax.imshow(spectrogram(wave), origin="lower", aspect="auto", cmap="magma", vmin=-70, vmax=0,
                  extent=(0, len(wave) / RATE, 0, 5000), interpolation="bilinear")  # fmt: skip
        if pitch is not None:
            times, hz, on = pitch.track(wave)
            ax.plot(times, np.where(on, hz, np.nan), color=LINE, linewidth=1.6, label="F0")
        ax.set(xlim=(0, seconds), ylim=(0, 5000), yticks=range(0, 5001, 1000), yticklabels=range(6))
        ax.set_title(f"{title}: {Path(path).name}", loc="left", fontsize=9, color=INK)
        ax.set_ylabel("kHz", fontsize=8, color=INK)
        ax.tick_params(labelsize=8, colors=INK, length=2)
        ax.spines[:].set_visible(False)
    if pitch is not None:
        axes[0].legend(loc="upper right", fontsize=8, facecolor="black", labelcolor="white", framealpha=0.6)
    axes[1].set_xlabel("seconds", fontsize=8, color=INK)
    data = b""
    paper, ink, line = (np.array(colors.to_rgb(c)) for c in (SURFACE, INK, LINE))
    for dpi, shades in ((100, 96), (90, 64), (75, 48), (60, 32)):  # noise hardly compresses: shrink to fit
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        ramps = [paper + w * (other - paper) for other in (ink, line) for w in np.linspace(0, 1, 8)]
        table = np.vstack((colormaps["magma"](np.linspace(0, 1, shades))[:, :3], line * 0.5, *ramps))
        palette = Image.new("P", (1, 1))
        palette.putpalette((table * 255).round().astype(np.uint8).tobytes())
        picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) < MAX_BYTES:
            break
    try:
        with atomic_path(out) as temp:
            temp.write_bytes(data)
    except OSError as e:
        raise AudioError(f"{out}: the picture cannot be written ({e})") from None
    return len(data)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after one line that says what is wrong."""
    p = argparse.ArgumentParser(prog="python -m vivavoce.eval.plots", description=__doc__)
    p.add_argument("source")
    p.add_argument("converted")
    p.add_argument("-o", "--out", required=True, help="PNG to write")
    a = p.parse_args(argv)
    try:
        print(f"{a.out}: {draw(a.source, a.converted, a.out) / 1000:.0f} kB")
    except VivavoceError as e:
        print(f"vivavoce: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
