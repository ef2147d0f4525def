"""Corpora: a folder of recordings or a JSONL manifest (tar shards included) -> a *pack* ready for training.

A pack is a folder that every training recipe reads with memory maps:

    manifest.jsonl   a line a clip: all fields of the corpus' manifest, plus `offset` (first frame) and `frames`
    audio.i16        mono 16-bit PCM at 16 kHz, clips padded to whole 20 ms frames, end to end
    pitch.f32        [frames, 2]: F0 in Hz and the tracker's confidence at each frame's leading edge, time (t + 1) * hop
    teacher.u16      [frames] content labels of a teacher, where label files were given (65535: none)
    prepare.json     the settings it was made with
    pack.json        sample rate, hop, format version
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.core.audio import SUFFIXES
from vivavoce.core.checkpoint import read_json, write_json
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.core.resample import resample

RATE, HOP = 16000, 320
NO_LABEL = 65535
PACK_FORMAT = 1


@dataclass
class PrepareConfig:
    """Where a corpus lies and what of it to take."""

    corpus: str  # folder with manifest.jsonl, or any folder of recordings (a sub-folder a speaker)
    out: str  # the pack
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # from the train split
    teacher: str | None = None  # .npz label file with clip_ids, offsets, lengths and an array of labels
    teacher_array: str = "units_500"
    pitch: bool = True  # label F0 with swift-f0
    workers: int = 2
    limit: int | None = None  # clips, for trials


def licence_parts(licence: str | None) -> set[str]:
    """`CC-BY-NC-SA-4.0` -> {CC, BY, NC, SA, 4.0}."""
    return set((licence or "unknown").upper().replace("_", "-").split("-"))


def scan(corpus: str | Path) -> list[dict[str, Any]]:
    """The clips of a corpus: its manifest's lines, or, without one, every recording below the folder.

    In a plain folder the speaker is the name of the sub-folder, and every tenth speaker (at least one
    clip) is held out for validation.

    Raises:
        CorpusError: no such folder, nothing in it, a malformed line, a repeated id.
    """
    root = Path(corpus)
    if not root.is_dir():
        raise CorpusError(f"{root}: no such corpus folder")
    manifest = root / "manifest.jsonl"
    if manifest.is_file():
        clips = []
        for n, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
            try:
                clip = json.loads(line)
                clip["id"], clip["path"]
            except (json.JSONDecodeError, KeyError, TypeError) as e:
                raise CorpusError(f"{manifest}:{n}: {e!r}; each line needs at least id and path") from None
            clips.append(clip)
    else:
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        speakers = sorted({p.parent.relative_to(root).as_posix() for p in files})
        held = set(speakers[9::10])
        clips = []
        for i, p in enumerate(files):
            rel = p.relative_to(root)
            speaker = rel.parent.as_posix()
            valid = speaker in held if len(speakers) >= 10 else i % 20 == 19
            clips.append({"id": rel.with_suffix("").as_posix().replace("/", "-"), "path": rel.as_posix(),
                          "speaker": speaker, "split": "valid" if valid else "train"})
    if not clips:
        raise CorpusError(f"{root}: no manifest.jsonl and no recordings ({', '.join(SUFFIXES)})")
    ids = [c["id"] for c in clips]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise CorpusError(f"{root}: clip id {twice!r} appears twice")
    return clips


@lru_cache(maxsize=8)
def _tar_index(path: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    tar = tarfile.open(path)  # noqa: SIM115
    return tar, {m.name.removeprefix("./"): m for m in tar.getmembers()}


def read_clip(corpus: str | Path, clip: dict[str, Any]) -> np.ndarray:
    """Decode one clip, loose or inside its tar shard, to mono float32 at 16 kHz, [samples].

    Raises:
        CorpusError: missing, unreadable, empty or not finite.
    """
    import soundfile

    name = f"{clip.get('shard') or corpus}:{clip['path']}"
    try:
        if clip.get("shard"):
            tar, index = _tar_index(str(Path(corpus) / clip["shard"]))
            handle = tar.extractfile(index[clip["path"]])
            if handle is None:
                raise KeyError(f"{clip['path']} is no file")
            x, rate = soundfile.read(io.BytesIO(handle.read()), dtype="float32", always_2d=True)
        else:
            x, rate = soundfile.read(str(Path(corpus) / clip["path"]), dtype="float32", always_2d=True)
    except (KeyError, OSError, tarfile.TarError, RuntimeError) as e:
        raise CorpusError(f"{name}: cannot be read ({e})") from None
    if len(x) == 0 or not np.isfinite(x).all():
        raise CorpusError(f"{name}: {'empty' if len(x) == 0 else 'NaN or infinite samples'}")
    try:
        return resample(torch.from_numpy(x.mean(axis=1))[None], rate, RATE)[0].numpy()
    except AudioError as e:
        raise CorpusError(f"{name}: {e}") from None


@lru_cache(maxsize=1)
def _pitch_judge():
    from swift_f0 import SwiftF0

    return SwiftF0(threads=1, spin=False)


def track_pitch(x: np.ndarray, frames: int) -> np.ndarray:
    """Offline F0 labels by swift-f0 (MIT) at times (t + 1) * hop: [frames, 2] = (Hz, confidence)."""
    r = _pitch_judge().detect(np.pad(x, (0, max(0, 4096 - len(x)))), RATE)
    times = np.arange(1, frames + 1) * HOP / RATE
    at = np.clip(np.searchsorted(r.timestamps, times), 1, len(r.timestamps) - 1)
    w = np.clip((times - r.timestamps[at - 1]) / (r.timestamps[at] - r.timestamps[at - 1]), 0, 1)
    log_a, log_b = np.log(r.pitch_hz[at - 1]), np.log(r.pitch_hz[at])
    near = np.abs(log_a - log_b) < 0.15  # interpolate glides, not octave jumps
    hz = np.exp(np.where(near, (1 - w) * log_a + w * log_b, np.where(w < 0.5, log_a, log_b)))
    conf = (1 - w) * r.confidence[at - 1] + w * r.confidence[at]
    return np.stack((hz, conf), 1).astype(np.float32)


def _prepare_one(job: tuple[str, dict[str, Any], bool]) -> tuple[np.ndarray, np.ndarray] | str:
    torch.set_num_threads(1)
    corpus, clip, pitch = job
    try:
        x = read_clip(corpus, clip)
    except CorpusError as e:
        return str(e)
    frames = -(-len(x) // HOP)
    x = np.pad(x, (0, frames * HOP - len(x)))
    f0 = track_pitch(x, frames) if pitch else np.zeros((frames, 2), np.float32)
    return np.clip(np.round(x * 32767), -32768, 32767).astype(np.int16), f0


def prepare(config: PrepareConfig) -> Path:
    """Make (or finish) a pack. Clips that cannot be read are reported, skipped and counted.

    Raises:
        CorpusError: a corpus or label file that cannot be used at all.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    clips = scan(config.corpus)
    banned = {x.upper() for x in config.exclude_licences}
    clips = [c for c in clips if c.get("split", "train") != "train" or not licence_parts(c.get("licence")) & banned]
    clips = clips[: config.limit]
    if not clips:
        raise CorpusError(f"{config.corpus}: every clip is excluded by exclude_licences={config.exclude_licences}")
    teacher = _read_teacher(config)
    _check_same(out, config)
    done = _resume(out)
    todo = [c for c in clips if c["id"] not in done["ids"]]
    offset, skipped = done["offset"], 0
    jobs = ((config.corpus, c, config.pitch) for c in todo)
    bar = tqdm(total=len(clips), initial=len(done["ids"]), desc="prepare", unit="clip")
    with (
        ProcessPoolExecutor(max(1, config.workers)) as pool,
        open(out / "audio.i16", "ab") as audio,
        open(out / "pitch.f32", "ab") as pitch,
        open(out / "teacher.u16", "ab") as labels,
        open(out / "manifest.jsonl", "a", encoding="utf-8") as manifest,
        bar,
    ):
        for clip, result in zip(todo, pool.map(_prepare_one, jobs, chunksize=8)):
            bar.update()
            if isinstance(result, str):
                skipped += 1
                tqdm.write(f"skipped: {result}")
                continue
            x, f0 = result
            frames = len(f0)
            audio.write(x.tobytes())
            pitch.write(f0.tobytes())
            labels.write(_labels_of(teacher, clip["id"], frames).tobytes())
            for f in (audio, pitch, labels):
                f.flush()
            manifest.write(json.dumps({**clip, "offset": offset, "frames": frames}, ensure_ascii=False) + "\n")
            manifest.flush()
            offset += frames
    if not offset:
        raise CorpusError(f"{config.corpus}: none of its {len(clips)} clips could be read")
    write_json(out / "pack.json", {"format": PACK_FORMAT, "sample_rate": RATE, "hop": HOP, "frames": offset,
                                   "skipped": skipped, "corpus_fields": "see manifest.jsonl"})
    return out


def _check_same(out: Path, config: PrepareConfig) -> None:
    """Refuse to go on with a pack whose clips so far were made otherwise; they would keep their old labels."""
    own = {k: getattr(config, k) for k in ("exclude_licences", "teacher", "teacher_array", "pitch")}
    path = out / "prepare.json"
    found = read_json(path) if path.is_file() else own
    if found != own:
        differ = ", ".join(k for k in own if found.get(k) != own[k])
        raise CorpusError(f"{out}: this pack was begun with other settings ({differ}); "
                          "choose another out= or remove it")
    write_json(path, own)


def _resume(out: Path) -> dict[str, Any]:
    """Drop whatever a killed run left half-written, and say what is complete."""
    ids: set[str] = set()
    offset = 0
    path = out / "manifest.jsonl"
    if path.is_file():
        good = b""
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                clip = json.loads(line)
            except json.JSONDecodeError:
                break
            if not line.endswith(b"\n"):
                break
            ids.add(clip["id"])
            offset = clip["offset"] + clip["frames"]
            good += line
        path.write_bytes(good)
    for name, width in (("audio.i16", 2 * HOP), ("pitch.f32", 8), ("teacher.u16", 2)):
        if (out / name).is_file():
            os.truncate(out / name, offset * width)
    return {"ids": ids, "offset": offset}


def _read_teacher(config: PrepareConfig) -> dict[str, np.ndarray] | None:
    if config.teacher is None:
        return None
    try:
        data = np.load(config.teacher, allow_pickle=False)
        labels = data[config.teacher_array]
        return {str(i): labels[o : o + n] for i, o, n in zip(data["clip_ids"], data["offsets"], data["lengths"])}
    except (OSError, KeyError, ValueError) as e:
        raise CorpusError(f"{config.teacher}: not a label file with {config.teacher_array} ({e})") from None


def _labels_of(teacher: dict[str, np.ndarray] | None, clip_id: str, frames: int) -> np.ndarray:
    out = np.full(frames, NO_LABEL, np.uint16)
    if teacher is not None and clip_id in teacher:
        have = teacher[clip_id][:frames]
        out[: len(have)] = have
    return out


class Pack:
    """Read access to a pack. `clips` are manifest lines; arrays are memory maps over all frames."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CorpusError when the pack is missing, unfinished or of another format."""
        self.folder = Path(folder)
        if not (self.folder / "pack.json").is_file():
            raise CorpusError(f"{folder}: not a finished pack; make one with `vivavoce prepare`")
        head = read_json(self.folder / "pack.json")
        if (head.get("format"), head.get("sample_rate"), head.get("hop")) != (PACK_FORMAT, RATE, HOP):
            raise CorpusError(f"{folder}: pack of another format or sample rate ({head}); prepare it again")
        lines = (self.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        self.clips: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.audio = np.memmap(self.folder / "audio.i16", np.int16, "r").reshape(-1, HOP)
        self.pitch = np.memmap(self.folder / "pitch.f32", np.float32, "r").reshape(-1, 2)
        self.teacher = np.memmap(self.folder / "teacher.u16", np.uint16, "r")

    def split(self, name: str) -> list[dict[str, Any]]:
        """The clips of one split (`train`, `valid`, `test`)."""
        return [c for c in self.clips if c.get("split", "train") == name]

    def waveform(self, start: int, frames: int) -> np.ndarray:
        """float32 samples [frames * hop] from pack frame `start`."""
        return self.audio[start : start + frames].reshape(-1).astype(np.float32) / 32767.0


def iterate(pack: Pack, split: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Clips of a split with their waveforms."""
    for clip in pack.split(split):
        yield clip, pack.waveform(clip["offset"], clip["frames"])
