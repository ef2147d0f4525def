"""Files, folders and raw PCM through a changer: what `vivavoce convert` does."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vivavoce.changer import Changer
from vivavoce.core.audio import SUFFIXES, AudioWriter, open_audio
from vivavoce.core.errors import AudioError, VivavoceError
from vivavoce.engine import Settings
from vivavoce.voice import Voice


@dataclass(frozen=True)
class Job:
    """How to convert.

    Attributes:
        seconds: of audio pushed at a time; the result is the same with any.
        scan: hear the first minute of a file for its pitch register before converting it.
        keep: files that must not be written to, beside the source: the voice's own recording.
        converter: how a file is converted, if not as a stream: a function like `Changer.convert_blocks`.
    """

    changer: Changer
    voice: Voice
    settings: Settings
    seconds: float
    scan: bool = True
    keep: tuple[Path, ...] = ()
    converter: Callable[..., Iterator[Tensor]] | None = None

    def blocks(self, source: Path) -> Iterator[Tensor]:
        """The converted file, block by block."""
        convert = self.converter or self.changer.convert_blocks
        return convert(source, self.voice, self.settings, self.seconds, self.scan)


@dataclass
class Tally:
    """What was done: counts of files, and seconds of audio and of work."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    audio: float = 0.0
    work: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.done} file{'s' * (self.done != 1)} converted"]
        parts += [f"{self.skipped} skipped, finished earlier (--overwrite converts them again)"] * bool(self.skipped)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        factor = f", real-time factor {self.work / self.audio:.3f}" if self.audio else ""
        return f"{', '.join(parts)}; {self.audio:.1f} s of audio in {self.work:.1f} s{factor}"


def convert_path(job: Job, source: Path, out: Path | None, overwrite: bool = False) -> Tally:
    """Convert a file, or a folder with all below it.

    Args:
        out: a file for a file; a folder for either. Without one, a file becomes `<stem>.<voice>.wav`
            beside itself.
        overwrite: convert the files of a folder again whose output is there already.

    Raises:
        VivavoceError: nothing can be done. In a folder, bad files are reported on stderr and counted.
    """
    if source.is_dir():
        if out is None:
            raise VivavoceError(f"{source}: is a folder, so say with -o into which folder to convert")
        return _folder(job, source, out, overwrite)
    tally, target = Tally(), _target(source, out, job.voice.name)
    with open_audio(source) as f:
        total = f.frames / f.samplerate
    with tqdm(total=round(total, 1), unit="s", desc=source.name, disable=None, leave=False) as bar:
        _file(job, source, target, tally, bar)
    return tally


def _target(source: Path, out: Path | None, voice: str) -> Path:
    if out is None:
        voice = re.sub(r"[^\w.-]+", "_", voice)
        return source.with_name(f"{source.stem}.{voice}.wav")
    if out.is_dir() or not out.suffix:
        return out / source.name
    return out


def _folder(job: Job, source: Path, out: Path, overwrite: bool) -> Tally:
    if out.exists() and not out.is_dir():
        raise VivavoceError(f"{out}: is a file, but converting a folder needs a folder to write into")
    if out.resolve() == source.resolve():
        raise VivavoceError(f"{out}: is the source folder itself; choose another with -o")
    files = list(_recordings(source, out))
    if not files:
        raise AudioError(f"{source}: no recordings in it ({', '.join(s[1:] for s in SUFFIXES)})")
    _make_folder(out)
    tally = Tally()
    with tqdm(files, unit="file", desc=source.name or str(source), disable=None) as bar:
        for path in bar:
            target = out / path.relative_to(source)
            if target.is_file() and not overwrite:
                tally.skipped += 1  # writes are atomic: what is there is whole
                continue
            try:
                _file(job, path, target, tally)
            except (VivavoceError, OSError) as e:
                tally.failed += 1
                tqdm.write(f"vivavoce: {e}" if str(path) in str(e) else f"vivavoce: {path}: {e}", file=sys.stderr)
    return tally


def _recordings(source: Path, out: Path) -> Iterator[Path]:
    """Recordings below `source`, in order; neither hidden ones nor those of an output folder inside it."""
    avoid = out.resolve()
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        recording = path.suffix.lower() in SUFFIXES and path.is_file()
        if recording and not hidden and avoid not in path.resolve().parents:
            yield path


def _file(job: Job, source: Path, target: Path, tally: Tally, bar: tqdm | None = None) -> None:
    for path in (source, *job.keep):
        if target.exists() and path.exists() and target.samefile(path):
            raise VivavoceError(f"{target}: would overwrite {'the source itself' if path is source else path}")
    with open_audio(source) as f:
        rate = int(f.samplerate)
    began = time.monotonic()
    blocks = job.blocks(source)
    blocks = itertools.chain([next(blocks)], blocks)  # a bad source shows itself before anything is made
    _make_folder(target.parent)
    tally.audio += _write(blocks, target, rate, bar)
    tally.work += time.monotonic() - began
    tally.done += 1


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AudioError(f"{folder}: the folder cannot be made ({e.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise AudioError(f"{folder}: no permission to write into this folder")


def _write(blocks: Iterable[Tensor], target: Path, rate: int, bar: tqdm | None = None) -> float:
    n = 0
    with AudioWriter(target, rate) as f:
        for block in blocks:
            f.write(block)
            n += len(block)
            if bar is not None:
                bar.update(len(block) / rate)
    return n / rate


def convert_pcm(job: Job, source: BinaryIO, out: BinaryIO | Path, rate: int, channels: int = 1) -> Tally:
    """Convert raw little-endian 16-bit PCM from a stream as it comes, to raw mono PCM or to a file.

    Args:
        source: read `job.seconds` at a time.
        out: a binary stream, flushed after each chunk, or an audio file to write.
        rate, channels: of the source; several channels are mixed down.

    Raises:
        AudioError: not one sample came.
    """
    tally, began = Tally(), time.monotonic()
    blocks = _convert_stream(job, source, rate, channels)
    if isinstance(out, Path):
        tally.audio = _write(blocks, out, rate)
    else:
        for block in blocks:
            out.write((block * 32768.0).round().clamp_max(32767).to(torch.int16).numpy().astype("<i2").tobytes())
            out.flush()
            tally.audio += len(block) / rate
    tally.work, tally.done = time.monotonic() - began, 1
    return tally


def _convert_stream(job: Job, source: BinaryIO, rate: int, channels: int) -> Iterator[Tensor]:
    stream, width, taken = job.changer.stream(job.voice, rate, job.settings, chunk=job.seconds), 2 * channels, 0
    size = max(1, round(job.seconds * rate)) * width
    while data := source.read(size):
        data = data[: len(data) // width * width]  # a source that was killed may end within a sample
        x = np.frombuffer(data, "<i2").astype(np.float32).reshape(-1, channels).mean(axis=1) / 32768.0
        taken += len(x)
        yield stream.push(torch.from_numpy(x))
    if not taken:
        raise AudioError("standard input: not one sample came; expected raw 16-bit PCM")
    yield stream.flush()
