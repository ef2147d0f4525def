"""Where the tokeniser's clips come from: a pack on disk, cut into shards, or a data set that streams in.

Both number their jobs in a way that depends on nothing but themselves; see recipes.tokenise for why.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpora.hub import FILE, HubSource
from vivavoce.recipes.corpus import HOP, RATE, TOLD, Pack, allowed, read_clip
from vivavoce.recipes.data import stretched
from vivavoce.recipes.tokens import is_token

Job = tuple[str, int]
Block = list[tuple[dict[str, Any], Callable[[], np.ndarray]]]  # clips with `frames`, and how to get [frames * hop]
TEXT = ("id", "split", "speaker", "emotion")  # are text, whatever a data set has them as
BLOCK_SECONDS = 600.0  # of decoded audio that a stream keeps in memory


class Source(Protocol):
    """What the tokeniser asks of a source.

    `jobs` are what processes share; `targets` the shards (split, index) that each writes, `shards` their number by
    split; `schema` the manifest's fields with their Arrow types; `digest` changes when the clips do.
    """

    jobs: list[Job]
    targets: dict[Job, list[tuple[str, int]]]
    shards: dict[str, int]
    schema: dict[str, Any]
    digest: str

    def frames(self, jobs: list[Job]) -> int | None:
        """How many frames some jobs hold; None where that is not known beforehand."""

    def blocks(self, part: str, index: int) -> Iterator[Block]:
        """The clips of a job, always the same in the same order."""

    def take_skipped(self) -> int:
        """How many clips could not be read since the last call."""


class PackSource:
    """Each split of a pack, in shards of `shard_clips` clips.

    Args:
        speeds: copies of the train split, played so many times as fast: each speaker once more as another, whose pitch
            and formants are that much higher (speed perturbation, Ko et al. 2015).

    Raises:
        CorpusError: no clip in the splits.
    """

    def __init__(self, folder: str, splits: list[str], shard_clips: int, speeds: Sequence[float] = ()) -> None:
        self.pack, self.size = Pack(folder), shard_clips
        self.clips = {s: c for s in splits if (c := self.pack.split(s))}
        if not self.clips:
            raise CorpusError(f"{folder}: no clip in splits {', '.join(splits)}")
        if "train" in self.clips:
            self.clips["train"] = [_faster(c, v) for v in (1.0, *speeds) for c in self.clips["train"]]
        self.shards = {s: -(-len(c) // shard_clips) for s, c in self.clips.items()}
        self.jobs = [(s, k) for s, n in self.shards.items() for k in range(n)]
        self.targets = {j: [j] for j in self.jobs}
        self.schema = manifest_schema(self.pack.clips)
        self.digest = hashlib.sha256((Path(folder) / "manifest.jsonl").read_bytes()).hexdigest()

    def _of(self, part: str, index: int) -> list[dict[str, Any]]:
        return self.clips[part][index * self.size : (index + 1) * self.size]

    def frames(self, jobs: list[Job]) -> int | None:
        return sum(c["frames"] for j in jobs for c in self._of(*j))

    def blocks(self, part: str, index: int) -> Iterator[Block]:
        yield [(c, partial(self.waveform, c)) for c in self._of(part, index)]

    def waveform(self, clip: dict[str, Any]) -> np.ndarray:
        """float32 samples [frames * hop] of one of `clips`."""
        if "speed" not in clip:
            return self.pack.waveform(clip["offset"], clip["frames"])
        x = self.pack.waveform(clip["offset"], clip["original"])
        x = stretched(x, round(len(x) / clip["speed"]))
        return np.pad(x, (0, clip["frames"] * HOP - len(x)))

    def take_skipped(self) -> int:
        return 0


def _faster(clip: dict[str, Any], speed: float) -> dict[str, Any]:
    """What the manifest says of a clip that is played `speed` times as fast, by a speaker of its own."""
    if speed == 1.0:
        return clip
    named = {k: f"{clip[k]}@{speed:g}" for k in ("id", "speaker") if clip.get(k) is not None}
    frames = -(-round(clip["frames"] * HOP / speed) // HOP)
    timed = {"duration_s": clip["duration_s"] / speed} if clip.get("duration_s") is not None else {}
    return {**clip, **named, **timed, "frames": frames, "original": clip["frames"], "speed": speed}


class StreamSource:
    """A data set (see recipes.corpora.hub): a job for each of its own shards, decoded a few minutes at a time.

    Raises:
        CorpusError: it cannot be loaded, has none of the splits, or a licence that is excluded.
    """

    def __init__(self, folder: str, splits: list[str], exclude_licences: list[str]) -> None:
        import pyarrow as pa
        from datasets import Value

        self.folder, self.exclude, self.skipped = folder, exclude_licences, 0
        self.source = HubSource(folder)
        count: Counter[str] = Counter()
        self.targets = {}
        for part, index in self.source.jobs:
            theirs = [s for s in self.source.splits_of(part) if s in splits]
            if theirs and (theirs != ["train"] or allowed({"split": "train", **self.source.same}, exclude_licences)):
                self.targets[part, index] = [(s, count[s]) for s in theirs]
                count.update(theirs)
        if not self.targets:
            raise CorpusError(f"{folder}: no clip in splits {', '.join(splits)}, or their licence is one of "
                              f"exclude_licences={exclude_licences}")
        self.jobs, self.shards = list(self.targets), dict(count)
        self.schema = dict.fromkeys(("id", "split", *self.source.same), pa.string())
        for field, column in self.source.columns.items():
            kind = self.source.features[column]
            if field != "audio":
                plain = isinstance(kind, Value) and field not in TEXT
                self.schema[field] = kind.pa_type if plain else pa.string()
        if "emotion" in self.schema:
            self.schema["emotion_raw"] = pa.string()
        self.schema["frames"] = pa.int32()
        self.digest = hashlib.sha256((Path(folder) / FILE).read_bytes()).hexdigest()

    def frames(self, jobs: list[Job]) -> int | None:
        return None

    def blocks(self, part: str, index: int) -> Iterator[Block]:
        block: Block = []
        seconds = 0.0
        wanted = {s for s, _ in self.targets[part, index]}
        for clip, data in self.source.read(part, index):
            if clip["split"] not in wanted or not allowed(clip, self.exclude):
                continue
            try:
                x = read_clip(self.folder, clip, data)
            except CorpusError as e:
                self.skipped += 1
                if self.skipped <= TOLD:
                    tqdm.write(f"skipped: {e}")
                continue
            frames = -(-len(x) // HOP)
            block.append(({**clip, "frames": frames}, partial(np.pad, x, (0, frames * HOP - len(x)))))
            seconds += len(x) / RATE
            if seconds > BLOCK_SECONDS:
                yield block
                block, seconds = [], 0.0
        yield block

    def take_skipped(self) -> int:
        taken, self.skipped = self.skipped, 0
        return taken


def manifest_schema(clips: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Union of the manifest's fields with one Arrow type each, the same for all shards of a pack.

    Fields that mix types Arrow cannot join are kept as JSON text.

    Raises:
        CorpusError: a field named like a token column.
    """
    import pyarrow as pa

    values: dict[str, list[Any]] = {}
    for clip in clips:
        for name, value in clip.items():
            values.setdefault(name, []).append(value)
    schema = {}
    for name, column in values.items():
        if is_token(name):
            raise CorpusError(f"manifest field {name!r} collides with the tokens' own columns; rename it")
        try:
            kind = pa.array(column).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kind = pa.string()
        empty = pa.types.is_null(kind) or (pa.types.is_struct(kind) and not kind.num_fields)
        schema[name] = pa.string() if empty else kind
    return {**schema, "frames": pa.int32()}


