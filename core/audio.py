"""Audio files in and out through soundfile: WAV, FLAC, Ogg/Opus, MP3; any rate, any channel count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError
from vivavoce.core.resample import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BLOCK_SECONDS = 10


def open_audio(path: str | Path):
    """Open a file for reading. Raises AudioError (missing, empty, not audio)."""
    import soundfile

    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError) as e:
        raise AudioError(f"{path}: not readable as audio ({e.__class__.__name__}); "
                         f"expected {', '.join(s[1:] for s in SUFFIXES)}") from None


def mono_blocks(path: str | Path, seconds: float = BLOCK_SECONDS) -> Iterator[Tensor]:
    """Yield mono float32 blocks [samples] of a file, in constant memory.

    Raises:
        AudioError: unreadable file, no samples, NaN or infinite samples.
    """
    import soundfile

    with open_audio(path) as f:
        size, n = max(1, int(f.samplerate * seconds)), 0
        while True:
            try:
                block = f.read(size, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as e:
                raise AudioError(f"{path}: damaged after {n} samples ({e})") from None
            if len(block) == 0:
                break
            if not np.isfinite(block).all():
                where = n + int(np.argwhere(~np.isfinite(block).all(axis=1))[0, 0])
                raise AudioError(f"{path}: NaN or infinite sample at index {where}; repair the file first")
            n += len(block)
            yield torch.from_numpy(block.mean(axis=1))
    if n == 0:
        raise AudioError(f"{path}: holds no samples")


def load(path: str | Path, rate: int | None = None) -> tuple[Tensor, int]:
    """Read a whole file as mono float32 [samples], resampled to `rate` Hz when given.

    Raises:
        AudioError: see `mono_blocks`.
    """
    with open_audio(path) as f:
        native = f.samplerate
    x = torch.cat(list(mono_blocks(path)))
    if rate is not None and rate != native:
        x, native = resample(x[None], native, rate)[0], rate
    return x, native


class AudioWriter:
    """Atomic block-wise writer: nothing stands at `path` until `close`; use as a context manager.

    Args:
        subtype: soundfile's; default 16-bit PCM for WAV and FLAC, the format's own otherwise.

    Raises:
        AudioError: unknown suffix, folder missing or not writable, disk full.
    """

    def __init__(self, path: str | Path, rate: int, subtype: str | None = None) -> None:
        self.path, self.rate = Path(path), rate
        if self.path.suffix.lower() not in SUFFIXES:
            raise AudioError(f"{path}: unknown suffix {self.path.suffix!r}; use one of {', '.join(SUFFIXES)}")
        if not self.path.parent.is_dir():
            raise AudioError(f"{self.path.parent}: no such folder to write into")
        self.subtype = subtype

    def __enter__(self) -> AudioWriter:
        import soundfile

        suffix = self.path.suffix.lower()
        fmt = {".opus": "OGG", ".ogg": "OGG"}.get(suffix, suffix[1:].upper())
        subtype = self.subtype or {".opus": "OPUS", ".wav": "PCM_16", ".flac": "PCM_16"}.get(suffix)
        self._atomic = atomic_path(self.path)
        try:
            self._temp = self._atomic.__enter__()
            self._file = soundfile.SoundFile(str(self._temp), "w", self.rate, 1, subtype, format=fmt)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, OSError) as e:
            raise self._fail(e) from None
        return self

    def _fail(self, e: BaseException) -> AudioError:
        if hasattr(self, "_temp"):
            self._temp.unlink(missing_ok=True)
        return AudioError(f"{self.path}: cannot be written ({e})")

    def write(self, x: Tensor) -> None:
        """Append mono samples [n]; they must lie in [-1, 1]."""
        try:
            self._file.write(x.detach().cpu().numpy())
        except (RuntimeError, OSError) as e:
            raise self._fail(e) from None

    def __exit__(self, kind, value, trace) -> None:
        try:
            self._file.close()
            self._atomic.__exit__(kind, value, trace)
        except (RuntimeError, OSError) as e:
            if kind is None:
                raise self._fail(e) from None


def save(path: str | Path, x: Tensor, rate: int) -> None:
    """Write mono samples [n] atomically; the suffix chooses the format. Raises AudioError."""
    with AudioWriter(path, rate) as f:
        f.write(x)
