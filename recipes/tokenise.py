"""A pack -> Parquet shards of source units and codec codes, and back as flat arrays for the language model.

    tokens.json                what the tokens were made with; shards of other models or settings are refused
    {split}/{shard:05d}.parquet    a row a clip; `datasets.load_dataset("parquet", data_dir=...)` reads them

A row carries every manifest field of its clip and, over its `frames` (T), row-major:

    content [T]  expression [T, channels]      units of the clip, as the live path computes them
    prosody [T, 3]                             pitch, periodicity and level; see units.prosody
    codes [T, codebooks]                       of the codec
    content_1, expression_1, content_2, ...    units of speaker-perturbed views of the clip

Everything is aligned: the look-ahead of the unit encoder is taken out.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vivavoce.codec import Codec
from vivavoce.core.checkpoint import atomic_path, read_json, resolve_folder, write_json
from vivavoce.core.errors import CheckpointError, ConfigError, CorpusError
from vivavoce.recipes.corpus import HOP, RATE, Pack
from vivavoce.recipes.perturb import perturb
from vivavoce.units import UnitEncoder
from vivavoce.units.prosody import quantise

TOKENS_FORMAT = 1


@dataclass
class TokeniseConfig:
    """`vivavoce tokenize` reads this."""

    pack: str
    codec: str  # model folders or hub ids
    units: str
    out: str
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    views: int = 2  # speaker-perturbed versions of each clip's units
    shard_clips: int = 512
    batch_frames: int = 1500  # frames in a batch, padding included; about 30 s keeps activations in cache
    threads: int | None = None  # CPU threads of a process
    workers: int = 1  # processes on this machine; on several, use `accelerate launch`
    warp: float = 0.17  # perturbation as in training the units
    eq_db: float = 5.0
    seed: int = 0
    precision: str = "no"  # of the perturbed views: no or bf16; all else is computed as it runs live


class Tokeniser:
    """Clips to tokens, in batches. Results do not depend on the batch, up to ties of floats."""

    def __init__(self, config: TokeniseConfig, device: torch.device | str = "cpu") -> None:
        if config.precision not in ("no", "bf16"):
            raise ConfigError(f"precision {config.precision!r}: use no or bf16")
        self.config, self.device = config, torch.device(device)
        self.codec = Codec.from_pretrained(config.codec).to(device)
        self.units = UnitEncoder.from_pretrained(config.units).to(device)
        for name, c in ((config.codec, self.codec.config), (config.units, self.units.config)):
            if (c.sample_rate, c.hop) != (RATE, HOP):
                raise CheckpointError(f"{name}: made for {c.sample_rate} Hz and hop {c.hop}; "
                                      f"packs hold {RATE} Hz and hop {HOP}")

    @torch.inference_mode()
    def __call__(self, waves: list[np.ndarray], ids: list[str]) -> list[dict[str, np.ndarray]]:
        """Waveforms [T_i * hop] and clip ids -> token columns of each, flat; see the module's head."""
        c, ahead = self.config, self.units.config.lookahead
        lengths = [len(w) // HOP for w in waves]
        x = torch.zeros(len(waves), (max(lengths) + ahead) * HOP)  # everything is causal: pad at the end
        for row, wave in zip(x, waves):
            row[: len(wave)] = torch.from_numpy(wave)
        x = x.to(self.device)
        (codes, level), _ = self.codec.encode(x[:, : max(lengths) * HOP])
        (f0, periodicity), _ = self.units.pitch(x)
        prosody = quantise(f0[:, ahead:], periodicity[:, ahead:], level)
        mel, _ = self.units.spectra(x)
        columns = {"codes": codes.short(), "prosody": prosody.short(), **self._units(mel)}
        for v in range(1, c.views + 1):
            other = self._perturbed(mel.cpu(), lengths, ids, v).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=c.precision == "bf16"):
                columns |= {f"{k}_{v}": y for k, y in self._units(other).items()}
        types = {"codes": np.uint16, "prosody": np.int16, "content": np.uint16, "expression": np.uint8}
        arrays = {k: y.cpu().numpy().astype(types[k.split("_")[0]]) for k, y in columns.items()}
        return [{k: a[i, :n].reshape(-1) for k, a in arrays.items()} for i, n in enumerate(lengths)]

    def _units(self, mel: Tensor) -> dict[str, Tensor]:
        """Log-mel [B, 2 (T + lookahead), M] -> content [B, T] and expression [B, T, channels]."""
        h, _ = self.units.features(mel)
        h = h[:, self.units.config.lookahead :]
        _, expression = self.units.fsq(self.units.expression_head(h))
        return {"content": self.units.content_head(h).argmax(-1), "expression": expression}

    def _perturbed(self, mel: Tensor, lengths: list[int], ids: list[str], view: int) -> Tensor:
        """Each clip's log-mel as another speaker's, drawn from (seed, clip id, view) alone, on the CPU."""
        c, out = self.config, torch.zeros_like(mel)
        with torch.random.fork_rng(devices=[]):
            for row, source, n, name in zip(out, mel, lengths, ids):
                digest = hashlib.sha256(f"{c.seed}/{name}/{view}".encode()).digest()
                torch.manual_seed(int.from_bytes(digest[:7], "little"))
                n = 2 * (n + self.units.config.lookahead)
                row[:n] = perturb(source[None, :n], c.warp, c.eq_db)[0]
        return out


def run(config: TokeniseConfig) -> dict[str, float]:
    """Write (or finish) the shards. Processes of `accelerate launch` and workers share them by index.

    Returns:
        hours of audio tokenised by this process in this call, and how many times faster than real time.

    Raises:
        CorpusError: no clips in the splits; `out` holds shards of other models or settings.
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    out, writer = Path(config.out), ShardWriter(config, str(state.device))
    clips = {s: c for s in config.splits if (c := writer.pack.split(s))}
    if not clips:
        raise CorpusError(f"{config.pack}: no clip in splits {', '.join(config.splits)}")
    head = writer.head()
    if (out / "tokens.json").is_file():
        _check_same(out, head)
    state.wait_for_everyone()  # all have looked before one writes
    main = state.is_main_process
    if main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "tokens.json", head)
    size = config.shard_clips
    jobs = [(s, k) for s, c in clips.items() for k in range(-(-len(c) // size))]
    jobs = [j for j in jobs[state.process_index :: state.num_processes] if not _shard(out, *j).is_file()]
    total = sum(c["frames"] for s, k in jobs for c in clips[s][k * size : (k + 1) * size])
    began, done, hour = time.monotonic(), 0, HOP / RATE / 3600
    style = "{l_bar}{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}]"
    with tqdm(total=total, unit_scale=hour, desc="tokenise", bar_format=style, disable=not main) as bar:
        for frames in _work(writer, jobs):
            done += frames
            bar.update(frames)
    state.wait_for_everyone()
    return {"hours": done * hour, "times_real_time": done * HOP / RATE / max(time.monotonic() - began, 1e-9)}


def _work(writer: ShardWriter, jobs: list[tuple[str, int]]) -> Iterator[int]:
    """Do the shards in `jobs`, here or in worker processes, and yield frames as they are done."""
    config = writer.config
    if config.workers <= 1 or len(jobs) < 2:
        for job in jobs:
            yield from writer.write(*job)
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process hangs in torch's threads
    n = min(config.workers, len(jobs))
    with ProcessPoolExecutor(n, spawn, _start_worker, (config, writer.device)) as pool:
        yield from pool.map(_worker, jobs)


_writer: ShardWriter  # of a worker process


def _start_worker(config: TokeniseConfig, device: str) -> None:
    global _writer
    _writer = ShardWriter(config, device)


def _worker(job: tuple[str, int]) -> int:
    return sum(_writer.write(*job))


class ShardWriter:
    """What a process needs to write shards: pack, models, the manifest's schema."""

    def __init__(self, config: TokeniseConfig, device: str) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.device = config, device
        self.pack = Pack(config.pack)
        self.tokeniser = Tokeniser(config, device)
        self.schema = manifest_schema(self.pack.clips)

    def head(self) -> dict[str, Any]:
        """What tokens.json says: all that the tokens depend on."""
        config, codec, units = self.config, self.tokeniser.codec.config, self.tokeniser.units.config
        shards = {s: -(-len(c) // config.shard_clips) for s in config.splits if (c := self.pack.split(s))}
        return {
            "format": TOKENS_FORMAT,
            "sample_rate": RATE,
            "hop": HOP,
            "codebooks": codec.n_codebooks,
            "codebook_size": codec.codebook_size,
            "content_units": units.content_units,
            "expression_levels": list(units.expression_levels),
            "codec_sha256": _sha256(resolve_folder(config.codec) / "model.safetensors"),
            "units_sha256": _sha256(resolve_folder(config.units) / "model.safetensors"),
            "pack_sha256": _sha256(self.pack.folder / "manifest.jsonl"),
            **{k: getattr(config, k) for k in ("views", "warp", "eq_db", "seed", "shard_clips", "precision")},
            "shards": shards,
        }

    def write(self, split: str, index: int) -> Iterator[int]:
        """Tokenise and write one shard, atomically; yields the frames of each batch as it is done."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = self.config.shard_clips
        clips = self.pack.split(split)[index * size : (index + 1) * size]
        rows: list[dict[str, np.ndarray]] = [{}] * len(clips)
        for batch in batches([c["frames"] for c in clips], self.config.batch_frames):
            waves = [self.pack.waveform(clips[i]["offset"], clips[i]["frames"]) for i in batch]
            for i, row in zip(batch, self.tokeniser(waves, [clips[i]["id"] for i in batch])):
                rows[i] = row
            yield sum(clips[i]["frames"] for i in batch)
        columns = {}
        for name, kind in self.schema.items():
            columns[name] = pa.array([_plain(c.get(name), kind) for c in clips], kind)
        for name in rows[0]:
            ends = np.cumsum([0] + [len(r[name]) for r in rows], dtype=np.int32)
            values = pa.array(np.concatenate([r[name] for r in rows]))
            columns[name] = pa.ListArray.from_arrays(pa.array(ends), values)
        path = _shard(Path(self.config.out), split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temp:
            pq.write_table(pa.table(columns), temp, compression="zstd")


def batches(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, each of at most `most` frames with its padding (or one clip)."""
    group: list[int] = []
    for i in np.argsort(lengths, kind="stable")[::-1].tolist():
        if group and lengths[group[0]] * (len(group) + 1) > most:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


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
        if name.split("_")[0] in ("content", "expression", "prosody", "codes"):
            raise CorpusError(f"manifest field {name!r} collides with the tokens' own columns; rename it")
        try:
            kind = pa.array(column).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kind = pa.string()
        empty = pa.types.is_null(kind) or (pa.types.is_struct(kind) and not kind.num_fields)
        schema[name] = pa.string() if empty else kind
    return {**schema, "frames": pa.int32()}


def _plain(value: Any, kind: Any) -> Any:
    if str(kind) == "string" and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _shard(out: Path, split: str, index: int) -> Path:
    return out / split / f"{index:05d}.parquet"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_same(out: Path, head: dict[str, Any]) -> None:
    found = read_json(out / "tokens.json")
    differ = [k for k in head if found.get(k) != head[k]]
    if differ:
        raise CorpusError(f"{out}: shards from another tokeniser version ({', '.join(differ)} differ); "
                          "choose another out= or remove it")


@dataclass
class TokenSplit:
    """All clips of a split end to end: N frames of len(clips) clips."""

    clips: list[dict[str, Any]]  # manifest fields, a dict a clip
    offsets: np.ndarray  # int64 [clips + 1]: clip i is frames offsets[i] to offsets[i + 1]
    content: np.ndarray  # uint16 [N]
    expression: np.ndarray  # uint8 [N, channels]
    prosody: np.ndarray  # int16 [N, 3]
    codes: np.ndarray  # uint16 [N, codebooks]
    views: list[tuple[np.ndarray, np.ndarray]]  # content and expression of each perturbed view


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

    def split(self, name: str) -> TokenSplit:
        """Load one split whole. Raises CorpusError when it is absent or unfinished."""
        import pyarrow.parquet as pq

        want = self.head["shards"].get(name, 0)
        paths = [_shard(self.folder, name, k) for k in range(want)]
        missing = [p for p in paths if not p.is_file()]
        if not want or missing:
            raise CorpusError(f"{self.folder}: split {name!r} " + (
                f"misses {len(missing)} of {want} shards; run the tokeniser again" if want
                else f"is not among {', '.join(self.head['shards'])}"))  # fmt: skip
        tables = [pq.read_table(p) for p in paths]

        def flat(column: str, width: int = 0) -> np.ndarray:
            # shard by shard: joined list columns would overflow Arrow's 32-bit offsets after some 1,000 h
            parts = [chunk.flatten().to_numpy() for t in tables for chunk in t.column(column).chunks]
            joined = np.concatenate(parts)
            return joined.reshape(-1, width) if width else joined

        channels, views = len(self.head["expression_levels"]), range(1, self.head["views"] + 1)
        tokens = {"content", "expression", "prosody", "codes"}
        meta = [c for c in tables[0].column_names if c.split("_")[0] not in tokens]
        clips = [row for t in tables for row in t.select(meta).to_pylist()]
        return TokenSplit(
            clips=clips,
            offsets=np.cumsum([0] + [c["frames"] for c in clips], dtype=np.int64),
            content=flat("content"),
            expression=flat("expression", channels),
            prosody=flat("prosody", 3),
            codes=flat("codes", self.head["codebooks"]),
            views=[(flat(f"content_{v}"), flat(f"expression_{v}", channels)) for v in views],
        )
