"""Audio files in and out through soundfile: WAV, FLAC, Ogg/Opus, MP3; any rate, any channel count."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.core.checkpoint import atomic_path
from vivavoce.core.errors import AudioError
from vivavoce.core.resample import resample

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BLOCK_SECONDS = 10
WRITE_BLOCK = 65536  # samples; libsndfile's Vorbis encoder crashes on minutes at a time
FORMATS = {  # suffix -> libsndfile's format and our default subtype (None: the format's own)
    ".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", None), ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", None),
}
ENCODER_RATES: dict[str, tuple[int, ...] | range] = {  # Hz; Vorbis in libsndfile crashes beyond
    ".opus": (8000, 12000, 16000, 24000, 48000),
    ".mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    ".ogg": range(1000, 200_001),
}


def _reason(e: BaseException) -> str:
    """What went wrong, without the temporary file's name that OSError and libsndfile put before it."""
    return getattr(e, "strerror", None) or getattr(e, "error_string", None) or str(e) or type(e).__name__


def open_audio(path: str | Path):
    """Open a file for reading. Raises AudioError (missing, empty, not permitted, not audio)."""
    import soundfile

    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such file")
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, expected an audio file")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: no permission to read it")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        return soundfile.SoundFile(str(path))
    except (RuntimeError, OSError) as e:  # LibsndfileError is a RuntimeError
        raise AudioError(f"{path}: not readable as audio ({_reason(e)}); "
                         f"expected {', '.join(s[1:] for s in SUFFIXES)}") from None


def mono_blocks(path: str | Path, seconds: float = BLOCK_SECONDS) -> Iterator[Tensor]:
    """Yield mono float32 blocks [samples] of a file, in constant memory.

    Raises:
        AudioError: unreadable or damaged file, no samples, NaN or infinite samples.
    """
    with open_audio(path) as f:
        f.seekable = lambda: False  # soundfile seeks after every read, and each seek costs MP3 a frame
        size, n = max(1, int(f.samplerate * seconds)), 0
        while True:
            try:
                block = f.read(size, dtype="float32", always_2d=True)
            except (RuntimeError, OSError) as e:
                raise AudioError(f"{path}: damaged after {n} samples ({_reason(e)})") from None
            if len(block) == 0:
                break
            if not np.isfinite(block).all():
                where = n + int(np.argwhere(~np.isfinite(block).all(axis=1))[0, 0])
                raise AudioError(f"{path}: NaN or infinite sample at index {where}; repair the file first")
            n += len(block)
            yield torch.from_numpy(block.mean(axis=1))
        if n == 0:
            raise AudioError(f"{path}: holds no samples")
        if n < 0.98 * f.frames < 2**62:  # MP3's count may be an estimate, a piped FLAC's is "endless"
            raise AudioError(f"{path}: damaged, {n} of {f.frames} samples can be read; repair the file first")


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


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and its like wait for the end of the block: what they raise in a callback from C is lost there."""
    kept: dict[int, Callable[[int, Any], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = ((s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM))
        kept = {int(s): h for s, h in handlers if callable(h)}
    came: list[tuple[int, Any]] = []
    try:
        for s in kept:
            signal.signal(s, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for s, handler in kept.items():
            signal.signal(s, handler)
        for number, frame in came[:1]:
            kept[number](number, frame)


class _Sink(io.FileIO):
    """A file for libsndfile that keeps the first error, which libsndfile drops or calls "System error"."""

    error: OSError | None = None

    def write(self, data) -> int:
        done = 0
        try:
            while done < len(data):  # a full disk takes a part first and objects to the rest
                done += super().write(data[done:])
        except OSError as e:
            self.error = self.error or e
        return done


class AudioWriter:
    """Atomic block-wise writer: nothing stands at `path` until the end of the `with` block, and nothing new
    stands there or beside it if the block, or the disk, fails.

    Args:
        subtype: soundfile's; default 16-bit PCM for WAV and FLAC, the format's own otherwise.

    Raises:
        AudioError: unknown suffix, a rate that the format cannot hold, folder missing or not writable, disk
            full, NaN or infinite samples.
    """

    def __init__(self, path: str | Path, rate: int, subtype: str | None = None) -> None:
        self.path, self.rate, self.subtype = Path(path), rate, subtype
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise AudioError(f"{path}: unknown suffix {self.path.suffix!r}; use one of {', '.join(SUFFIXES)}")
        rates = ENCODER_RATES.get(suffix, range(1, 2**31))
        if rate not in rates:
            known = f"{rates[0]} to {rates[-1]}" if isinstance(rates, range) else ", ".join(map(str, rates))
            raise AudioError(f"{path}: {suffix} holds no {rate} Hz, only {known}; resample, or choose .wav")
        if not self.path.parent.is_dir():
            raise AudioError(f"{self.path.parent}: no such folder to write into")
        if self.path.is_dir():
            raise AudioError(f"{path}: is a folder, expected a file to write")

    def __enter__(self) -> AudioWriter:
        import soundfile

        fmt, subtype = FORMATS[self.path.suffix.lower()]
        self._sink: _Sink | None = None
        self._stack = contextlib.ExitStack()
        try:
            temp = self._stack.enter_context(atomic_path(self.path))
            self._sink = self._stack.enter_context(_Sink(temp, "w"))
            subtype = self.subtype or subtype
            self._file = soundfile.SoundFile(self._sink, "w", self.rate, 1, subtype, format=fmt)
        except (RuntimeError, ValueError, OSError) as e:
            self._stack.__exit__(type(e), e, e.__traceback__)
            raise self._error(e) from None
        return self

    def _error(self, e: BaseException) -> AudioError:
        cause = (self._sink.error if self._sink is not None else None) or e
        return AudioError(f"{self.path}: cannot be written ({_reason(cause)})")

    def write(self, x: Tensor) -> None:
        """Append mono samples [n]; they must lie in [-1, 1]."""
        x = x.detach().float().cpu()
        if not bool(torch.isfinite(x).all()):
            raise AudioError(f"{self.path}: NaN or infinite samples cannot be written")
        assert self._sink is not None
        try:
            for block in x.split(WRITE_BLOCK):
                with _signals_wait():
                    self._file.write(block.numpy())
        except (RuntimeError, OSError, AssertionError) as e:  # soundfile asserts that all was written
            raise self._error(e) from None
        if self._sink.error:
            raise self._error(self._sink.error)

    def __exit__(self, kind, value, trace) -> None:
        assert self._sink is not None
        failure = value
        try:
            with _signals_wait():
                self._file.close()  # libsndfile writes its last block and the final header only now
        except BaseException as e:  # an interruption, too, must leave nothing behind
            failure = failure or e
        failure = failure or self._sink.error
        try:
            if failure is None:
                self._stack.close()
            else:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
        except OSError as e:
            failure = failure or e
        if value is None and failure is not None:
            raise (self._error(failure) if isinstance(failure, Exception) else failure) from None


def save(path: str | Path, x: Tensor, rate: int) -> None:
    """Write mono samples [n] atomically; the suffix chooses the format. Raises AudioError."""
    with AudioWriter(path, rate) as f:
        f.write(x)
