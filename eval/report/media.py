"""Sound and raster pictures as data: addresses, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from torch import Tensor

from vivavoce.core import audio
from vivavoce.core.resample import resample

EXCERPT = 12.0  # s of a clip that are embedded at most
TOP_RATE = 24000


def excerpt(path: str | Path) -> tuple[Tensor, int, bool]:
    """Mono samples [n], their rate (24 kHz at most) and whether the clip goes on. Raises AudioError."""
    x, rate = audio.load(path)
    cut = len(x) > EXCERPT * rate
    x = x[: round(EXCERPT * rate)]
    if rate > TOP_RATE:
        x, rate = resample(x[None], rate, TOP_RATE)[0], TOP_RATE
    return x.clamp(-1.0, 1.0), rate, cut


def sound(path: str | Path, small: bool = False) -> str:
    """A player's address: FLAC, which every browser plays and which loses nothing; `small`: Opus.

    Raises:
        AudioError: the clip cannot be read.
    """
    import soundfile

    x, rate, _ = excerpt(path)
    if small and rate not in audio.ENCODER_RATES[".opus"]:
        x, rate = resample(x[None], rate, 16000)[0].clamp(-1.0, 1.0), 16000
    buffer = io.BytesIO()
    form, subtype, mime = ("OGG", "OPUS", "audio/ogg") if small else ("FLAC", "PCM_16", "audio/flac")
    soundfile.write(buffer, x.numpy(), rate, format=form, subtype=subtype)
    return address(mime, buffer.getvalue())


def address(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def raster(shades: np.ndarray, quality: int = 55) -> str | None:
    """Grey values [rows, columns] in 0..255, top row first, as WebP; None where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(shades.astype(np.uint8), "L").save(buffer, "WEBP", quality=quality, method=6)
    return address("image/webp", buffer.getvalue())
