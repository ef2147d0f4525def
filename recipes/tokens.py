"""Tokens on disk, read: memory-mapped, so that a corpus of any size trains in the same little memory.

The shards are compressed Parquet. `datasets` unpacks them once into Arrow files beside them (`.arrow/`, see
docs/scaling.md for the size) and maps those; columns below are views of the maps, and indexing copies no more than
it returns. What stays in memory is some 50 bytes a clip: where it lies, who speaks, how likely it is to be drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.core.checkpoint import read_json
from vivavoce.core.errors import CorpusError
from vivavoce.core.grid import Grid

TOKENS_FORMAT = 1
COLUMNS = ("content", "expression", "prosody", "codes")  # and content_1, expression_1 ... of the views


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Where shard `index` of a split lies."""
    return folder / split / f"{index:05d}.parquet"


def is_token(column: str) -> bool:
    """Whether a column holds tokens, not a field of the manifest."""
    return column.split("_")[0] in COLUMNS


class Frames:
    """One token column over all clips of a split, end to end: [N] or [N, width], in memory-mapped parts.

    `frames[index]` takes integers [T] or a slice and copies those frames: [T] or [T, width].
    """

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(p) for p in parts], dtype=np.int64)
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, in memory: what NumPy's functions ask for."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        at = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        part = np.searchsorted(self.starts, at, side="right") - 1
        if len(part) and (part == part[0]).all():  # the usual case: one clip lies in one part
            return self.parts[part[0]][at - self.starts[part[0]]]
        out = np.empty((len(at), *self.shape[1:]), self.dtype)
        for k in np.unique(part):
            here = part == k
            out[here] = self.parts[k][at[here] - self.starts[k]]
        return out


class Covering(Frames):
    """A column of the units, one frame for each frame of the codes: that of the unit frame which covers it.

    Args:
        column: the units', in their own frames.
        codes, units: int64 [clips + 1], where each clip begins in code frames and in unit frames.
    """

    def __init__(self, column: Frames, codes: np.ndarray, units: np.ndarray, grid: Grid) -> None:
        super().__init__(column.parts)
        self.column, self.codes, self.units, self.grid = column, codes, units, grid
        self.shape = (int(codes[-1]), *column.shape[1:])

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        at = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        clip = np.searchsorted(self.codes, at, side="right") - 1
        return self.column[self.units[clip] + self.grid.unit(at - self.codes[clip])]


@dataclass
class TokenSplit:
    """All clips of a split end to end: N frames of the codec, of len(clips) clips."""

    clips: Sequence[dict[str, Any]]  # manifest fields, a dict a clip, read from the map when asked for
    frames: np.ndarray  # int64 [clips]: their lengths, in frames of the codec
    offsets: np.ndarray  # int64 [clips + 1]: clip i is frames offsets[i] to offsets[i + 1]
    content: Frames  # uint32 [N]
    expression: Frames  # uint8 [N, channels]
    prosody: Frames  # int16 [N, 3]
    codes: Frames  # uint16 [N, codebooks]
    views: list[tuple[Frames, Frames]]  # content and expression of each perturbed view
    grid: Grid = field(default_factory=Grid)

    def labels(self, name: str) -> tuple[np.ndarray, list[Any]]:
        """A field of the manifest as int64 [clips] into its distinct values; -1 where it is null or absent."""
        import pyarrow as pa

        data: Any = self.clips
        if name not in data.column_names:
            return np.full(len(self.frames), -1, np.int64), []
        column = pa.chunked_array(data.data.column(name).chunks).dictionary_encode().unify_dictionaries()
        codes = [c.indices.fill_null(-1).to_numpy(zero_copy_only=False) for c in column.chunks]
        return np.concatenate(codes).astype(np.int64), column.chunk(0).dictionary.to_pylist()


class Tokens:
    """Read access to a folder of tokens; `head` is what its tokens.json says.

    Raises:
        CorpusError: not a folder of tokens, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "tokens.json").is_file():
            raise CorpusError(f"{folder}: holds no tokens.json; make tokens with `vivavoce tokenize`")
        self.head: dict[str, Any] = read_json(self.folder / "tokens.json")
        if self.head.get("format") != TOKENS_FORMAT:
            raise CorpusError(f"{folder}: tokens of format {self.head.get('format')}, this release reads "
                              f"{TOKENS_FORMAT}; tokenise again")
        u, c = self.head.get("tick", (1, 1))
        rate = Fraction(self.head["sample_rate"], self.head["hop"])
        self.grid = Grid(rate, rate * c / u)

    def missing(self, name: str) -> list[Path]:
        """The shards of a split that are not there yet."""
        paths = (shard_path(self.folder, name, k) for k in range(self.head["shards"].get(name, 0)))
        return [p for p in paths if not p.is_file()]

    def split(self, name: str) -> TokenSplit:
        """Map one split. Processes of `accelerate launch` wait for the first, which unpacks it if need be.

        Raises:
            CorpusError: it is absent, unfinished or empty.
        """
        import pyarrow.parquet as pq
        from accelerate import PartialState
        from datasets import load_dataset

        want, missing = self.head["shards"].get(name, 0), self.missing(name)
        if not want or missing:
            raise CorpusError(f"{self.folder}: split {name!r} " + (
                f"misses {len(missing)} of {want} shards; run the tokeniser again" if want
                else f"is not among {', '.join(self.head['shards'])}"))  # fmt: skip
        paths = [str(shard_path(self.folder, name, k)) for k in range(want)]
        paths = [p for p in paths if pq.read_metadata(p).num_rows]
        if not paths:
            raise CorpusError(f"{self.folder}: split {name!r} holds no clip")
        cache = str(self.folder / ".arrow") if os.access(self.folder, os.W_OK) else None  # None: datasets' own
        with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
            data = load_dataset("parquet", data_files={"train": paths}, split="train", cache_dir=cache)
        units = np.concatenate([c.to_numpy() for c in data.data.column("frames").chunks]).astype(np.int64)
        frames = self.grid.codes(units)
        starts, offsets = (np.concatenate(([0], np.cumsum(n, dtype=np.int64))) for n in (units, frames))
        channels, views = len(self.head["expression_levels"]), range(1, self.head["views"] + 1)

        def column(name: str, width: int | None = None) -> Frames:
            if width == 0:
                return Frames([np.zeros((int(starts[-1]), 0), np.uint8)])
            flat = [c.flatten().to_numpy(zero_copy_only=True) for c in data.data.column(name).chunks if len(c)]
            return Frames([p.reshape(-1, width) if width else p for p in flat])

        def of_units(name: str, width: int | None = None) -> Frames:
            found = column(name, width)
            return found if self.grid.ratio == 1 else Covering(found, offsets, starts, self.grid)

        return TokenSplit(
            clips=data.select_columns([c for c in data.column_names if not is_token(c)]),  # type: ignore[arg-type]
            frames=frames,
            offsets=offsets,
            content=of_units("content"),
            expression=of_units("expression", channels),
            prosody=of_units("prosody", 3),
            codes=column("codes", self.head["codebooks"]),
            views=[(of_units(f"content_{v}"), of_units(f"expression_{v}", channels)) for v in views],
            grid=self.grid,
        )
