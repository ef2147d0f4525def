"""`datasets.load_dataset` as a corpus: Parquet or audio folders on disk, or a hub name, streamed and never copied.

A corpus folder that holds a `dataset.json` instead of a manifest is such a source: what to load, which column holds
which field of the manifest, and what is the same for all. `prepare` packs it; `tokenise` reads it as it comes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivavoce.core.checkpoint import read_json, write_json
from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpora.common import FIELDS, emotion, split_speakers

FILE = "dataset.json"
LOAD = ("name", "data_dir", "data_files", "split", "revision")  # of load_dataset, given as load.name=...
SAME = ("source", "language", "emotion", "vocalisation", "licence", "split")  # may be one value for all clips
SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}


def is_dataset(corpus: str | Path) -> bool:
    """Whether a corpus folder is read by `load_dataset`."""
    return (Path(corpus) / FILE).is_file()


def write_dataset(path: str, out: str | Path, settings: dict[str, str]) -> Path:
    """Describe a data set in the folder `out`: `field=column`, `field=value` for all clips, `load.name=...`.

    Raises:
        CorpusError: the data set cannot be loaded; a column that it has not, an unknown field.
    """
    load = {"path": str(Path(path).resolve()) if Path(path).exists() else path}
    wanted = dict(settings)
    for key in LOAD:
        if f"load.{key}" in wanted:
            load[key] = wanted.pop(f"load.{key}")
    features = _features(_load(load))
    columns, same = {}, {}
    for key, value in {"audio": "audio", **wanted}.items():
        if key not in ("audio", *FIELDS):
            raise CorpusError(f"{key}={value}: no field of the manifest; fields are audio, {', '.join(FIELDS)}, "
                              f"and settings load.{', load.'.join(LOAD)}")
        if value in features:
            columns[key] = value
        elif key in SAME:
            same[key] = value
        else:
            raise CorpusError(f"{path}: has no column {value!r} for {key}; it has {', '.join(features)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FILE, {"load": load, "columns": columns, "same": same})
    return out / FILE


class HubSource:
    """Reads what `dataset.json` describes. `splits`: ours -> how many shards the data set gives of it.

    Without splits of its own (a lone train split), speakers are held out by the hash of their names; then any shard
    may hold clips of any split.

    Raises:
        CorpusError: a malformed description, a data set that cannot be loaded.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        spec = read_json(self.folder / FILE)
        try:
            self.load, self.columns, self.same = dict(spec["load"]), dict(spec["columns"]), dict(spec["same"])
            self.columns["audio"], self.load["path"]
        except (KeyError, TypeError, ValueError) as e:
            raise CorpusError(f"{self.folder / FILE}: {e!r} is missing; make it anew with "
                              "`vivavoce corpus datasets`") from None
        found = _load(self.load)
        parts = found if isinstance(found, dict) else {str(self.load.get("split", "train")): found}
        self.parts = {k: _plain(v, self.columns["audio"]) for k, v in parts.items()}
        self.by_speaker = len(self.parts) == 1 and "split" not in self.columns and "split" not in self.same
        self.features = _features(found)
        self.jobs = [(name, k) for name, ds in self.parts.items() for k in range(max(1, ds.num_shards))]

    def read(self, part: str, index: int) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Manifest lines and encoded audio of one shard, always in the same order.

        The data set is dealt out over as many readers as it has shards, whoever they are: so shard `index` is the
        same whatever the number of processes, and can be read again by another one.
        """
        from datasets.distributed import split_dataset_by_node

        whole = self.parts[part]
        shards = max(1, whole.num_shards)
        rows = split_dataset_by_node(whole, rank=index, world_size=shards)
        names: dict[str, Any] = {k: getattr(self.features.get(c), "int2str", None) for k, c in self.columns.items()}
        try:
            for n, row in enumerate(rows):
                clip: dict[str, Any] = {"id": f"{part}-{index:05d}-{n:06d}", **self.same}
                for key, column in self.columns.items():
                    value = row[column]
                    clip[key] = names[key](value) if names[key] and isinstance(value, int) else value
                audio = clip.pop("audio") or {}
                audio = {"path": audio} if isinstance(audio, str) else audio
                if clip.get("emotion"):
                    clip |= {"emotion": emotion(str(clip["emotion"])), "emotion_raw": str(clip["emotion"])}
                clip["id"] = str(clip["id"])
                if clip.get("speaker") is not None:
                    clip["speaker"] = str(clip["speaker"])
                clip["split"] = self._split(part, clip)
                yield clip, audio.get("bytes") or _fetch(audio.get("path"))
        except (OSError, ConnectionError, ValueError, RuntimeError) as e:
            text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            raise CorpusError(f"{self.load['path']}: shard {index} of {part} broke off ({text}); "
                              "run the same command again to go on") from None

    def splits_of(self, part: str) -> tuple[str, ...]:
        """The splits that clips of this part of the data set can belong to."""
        if self.by_speaker or "split" in self.columns:
            return ("train", "valid", "test")
        return (str(self.same.get("split") or SPLITS.get(re.split(r"[^a-z]", part)[0], "train")),)

    def official(self, *splits: str) -> bool:
        """Whether the data set may give clips of one of these splits."""
        return any(s in self.splits_of(part) for part in self.parts for s in splits)

    def _split(self, part: str, clip: dict[str, Any]) -> str:
        if self.by_speaker:
            return split_speakers([str(clip.get("speaker") or clip["id"])]).popitem()[1]
        if "split" in self.columns:
            return SPLITS.get(str(clip["split"]), "train")
        return self.splits_of(part)[0]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        for job in self.jobs:
            yield from self.read(*job)


def _fetch(path: str | None) -> bytes:
    """The bytes of a file that a data set only points to; none (which no decoder takes) when it is not there."""
    import fsspec

    try:
        with fsspec.open(path or "", "rb") as f:
            return f.read()
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return b""


def _load(load: dict[str, Any]) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(**load, streaming=True)
    except Exception as e:  # of many libraries, by where the data lies
        text = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        raise CorpusError(f"{load['path']}: cannot be loaded as a data set ({text})") from None


def _features(found: Any) -> dict[str, Any]:
    part = next(iter(found.values())) if isinstance(found, dict) else found
    return dict(part.features or part._resolve_features().features)


def _plain(part: Any, column: str) -> Any:
    """Audio as bytes or a path: decoding is ours, so that every clip in the house is decoded alike (and torchcodec,
    which the Audio feature asks for, is not needed)."""
    from datasets import Audio, Value

    if not isinstance(_features(part).get(column), Audio):
        return part
    by_path = part.info.builder_name == "audiofolder"
    plain = Value("string") if by_path else {"bytes": Value("binary"), "path": Value("string")}
    return part.cast_column(column, plain)
