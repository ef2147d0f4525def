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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.core.audio import SUFFIXES
from vivavoce.core.checkpoint import read_json, write_json
from vivavoce.core.errors import AudioError, ConfigError, CorpusError
from vivavoce.core.resample import resample

RATE, HOP = 16000, 320
NO_LABEL = 65535
PACK_FORMAT = 1
TOLD = 20  # unreadable clips that are named; the rest is counted

Prepared = tuple[np.ndarray, np.ndarray]  # int16 samples [frames * hop]; F0 and confidence [frames, 2]


@dataclass
class PrepareConfig:
    """Where a corpus lies and what of it to take."""

    corpus: str  # manifest (.jsonl), folder with manifest.jsonl or dataset.json, or of recordings by speaker
    out: str  # the pack
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # from the train split
    teacher: str | None = None  # .npz label file with clip_ids, offsets, lengths and an array of labels
    teacher_array: str = "units_500"
    pitch: bool = True  # label F0 with swift-f0
    workers: int = 2
    limit: int | None = None  # clips, for trials


def check_grid(name: str, rate: int, hop: int, where: str, want_rate: int = RATE, want_hop: int = HOP) -> None:
    """Raise ConfigError, naming both sides, when a model's sample rate (Hz) or hop is not that of its data."""
    if (rate, hop) != (want_rate, want_hop):
        raise ConfigError(f"{name}: made for {rate} Hz and hop {hop}, but {where} holds {want_rate} Hz and hop "
                          f"{want_hop}; train or choose one for that")


def licence_parts(licence: str | None) -> set[str]:
    """`CC-BY-NC-SA-4.0` -> {CC, BY, NC, SA, 4.0}."""
    return set((licence or "unknown").upper().replace("_", "-").split("-"))


def allowed(clip: dict[str, Any], exclude_licences: list[str]) -> bool:
    """Whether a clip may be used: it is not of the train split, or its licence has none of these parts."""
    banned = {x.upper() for x in exclude_licences}
    return clip.get("split", "train") != "train" or not licence_parts(clip.get("licence")) & banned


def corpus_root(corpus: str | Path) -> Path:
    """The folder that relative paths of a corpus (a folder, or a manifest file) start from."""
    return Path(corpus).parent if Path(corpus).suffix == ".jsonl" else Path(corpus)


def scan(corpus: str | Path) -> list[dict[str, Any]]:
    """The clips of a corpus: the lines of a manifest, or, without one, every recording below the folder.

    In a plain folder the speaker is the name of the sub-folder, and every tenth speaker (at least one
    clip) is held out for validation.

    Raises:
        CorpusError: no such folder, nothing in it, a malformed line, a repeated id.
    """
    root = corpus_root(corpus)
    manifest = Path(corpus) if root != Path(corpus) else root / "manifest.jsonl"
    if not root.is_dir() or (root != Path(corpus) and not manifest.is_file()):
        raise CorpusError(f"{corpus}: no such corpus folder or manifest")
    if (root / "dataset.json").is_file() and not manifest.is_file():
        raise CorpusError(f"{root}: a data set that is streamed (dataset.json); only prepare and tokenise read it")
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
    twice = next((i for i, n in Counter(c["id"] for c in clips).items() if n > 1), None)
    if twice is not None:
        raise CorpusError(f"{root}: clip id {twice!r} appears twice")
    return clips


@lru_cache(maxsize=8)
def _tar_index(path: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
    tar = tarfile.open(path)  # noqa: SIM115
    return tar, {m.name.removeprefix("./"): m for m in tar.getmembers()}


def read_clip(corpus: str | Path, clip: dict[str, Any], data: bytes | None = None) -> np.ndarray:
    """Decode one clip to mono float32 at 16 kHz, [samples]: from `data`, loose, or inside its tar shard.

    With `start_s` a clip is a stretch of `duration_s` of its file; with `channel` (from 1) one channel of it.

    Raises:
        CorpusError: missing, unreadable, empty or not finite.
    """
    import soundfile

    corpus = corpus_root(corpus)
    name = f"{clip.get('shard') or corpus}:{clip.get('path') or clip['id']}"
    try:
        if data is not None:
            x, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        elif clip.get("shard"):
            tar, index = _tar_index(str(Path(corpus) / clip["shard"]))
            handle = tar.extractfile(index[clip["path"]])
            if handle is None:
                raise KeyError(f"{clip['path']} is no file")
            x, rate = soundfile.read(io.BytesIO(handle.read()), dtype="float32", always_2d=True)
        else:
            with soundfile.SoundFile(str(Path(corpus) / clip["path"])) as f:
                rate = f.samplerate
                if clip.get("start_s") is not None:
                    f.seek(round(clip["start_s"] * rate))
                n = -1 if clip.get("start_s") is None else round(clip["duration_s"] * rate)
                x = f.read(n, dtype="float32", always_2d=True)
        if clip.get("channel"):
            x = x[:, clip["channel"] - 1 : clip["channel"]]
            if not x.shape[1]:
                raise KeyError(f"it has no channel {clip['channel']}")
    except (KeyError, TypeError, OSError, tarfile.TarError, RuntimeError) as e:
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


def _prepare_one(corpus: str, clip: dict[str, Any], data: bytes | None, pitch: bool) -> Prepared | str:
    torch.set_num_threads(1)
    try:
        x = read_clip(corpus, clip, data)
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
    clips, total = wanted(config.corpus, config.exclude_licences)
    total = config.limit if total is None else min(total, config.limit or total)
    teacher = _read_teacher(config)
    _check_same(out, config)
    done = _resume(out)
    offset, seen, skipped = done["offset"], 0, 0
    todo = ((config.corpus, c, data, config.pitch) for c, data in islice(clips, config.limit)
            if c["id"] not in done["ids"])  # fmt: skip
    bar = tqdm(total=total, initial=len(done["ids"]), desc="prepare", unit="clip")
    with (
        ProcessPoolExecutor(max(1, config.workers)) as pool,
        open(out / "audio.i16", "ab") as audio,
        open(out / "pitch.f32", "ab") as pitch,
        open(out / "teacher.u16", "ab") as labels,
        open(out / "manifest.jsonl", "a", encoding="utf-8") as manifest,
        bar,
    ):
        for (_, clip, _, _), result in in_order(pool, _prepare_one, todo, 8 * max(1, config.workers)):
            bar.update()
            seen += 1
            if isinstance(result, str):
                skipped += 1
                if skipped <= TOLD:
                    tqdm.write(f"skipped: {result}" + " (further ones are counted only)" * (skipped == TOLD))
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
        raise CorpusError(f"{config.corpus}: none of its {seen} clips could be read")
    write_json(out / "pack.json", {"format": PACK_FORMAT, "sample_rate": RATE, "hop": HOP, "frames": offset,
                                   "skipped": skipped, "corpus_fields": "see manifest.jsonl"})
    return out


def wanted(
    corpus: str, exclude_licences: list[str]
) -> tuple[Iterable[tuple[dict[str, Any], bytes | None]], int | None]:
    """The clips whose licence lets them be used, with their audio where a data set streams it; and their number,
    where it is known.

    Raises:
        CorpusError: no clip is left; see `scan` and `HubSource`.
    """
    from vivavoce.recipes.corpora.hub import HubSource, is_dataset

    if is_dataset(corpus):
        source = HubSource(corpus)
        if not allowed({"split": "train", **source.same}, exclude_licences) and not source.official("valid", "test"):
            raise CorpusError(f"{corpus}: every clip is excluded by exclude_licences={exclude_licences}")
        return (row for row in source if allowed(row[0], exclude_licences)), None
    clips = [c for c in scan(corpus) if allowed(c, exclude_licences)]
    if not clips:
        raise CorpusError(f"{corpus}: every clip is excluded by exclude_licences={exclude_licences}")
    return ((c, None) for c in clips), len(clips)


def in_order(pool: Executor, function: Callable[..., Any], jobs: Iterable[tuple], ahead: int) -> Iterator[tuple]:
    """`(job, function(*job))` for each job in turn, at most `ahead` of them in memory (`Executor.map` takes all)."""
    waiting: deque[tuple[tuple, Any]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(function, *job)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for job, future in waiting:
        yield job, future.result()


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
