"""A pack, or a data set as it streams in -> Parquet shards of source units and codec codes (read by recipes.tokens).

    tokens.json                what the tokens were made with; shards of other models or settings are refused
    {split}/{shard:05d}.parquet    a row a clip; `datasets.load_dataset("parquet", data_dir=...)` reads them

A row carries every manifest field of its clip and, over its `frames` (T), row-major:

    content [T]  expression [T, channels]      units of the clip, as the live path computes them
    prosody [T, 3]                             pitch, periodicity and level; see units.prosody
    codes [T, codebooks]                       of the codec; [code_frames, codebooks] where its frames are shorter
    content_1, expression_1, content_2, ...    units of speaker-perturbed views of the clip

Everything is aligned: the look-ahead of the unit encoder is taken out. `Tokens` gives all of it frame by frame of the
codec, each with the units that cover it (core.grid).

What a shard holds follows from its number and the settings alone, and a shard appears whole or not at all. So work
is shared without claims or clocks: the first process lists what is missing and tells the others, and each takes every
n-th of that list. Whoever is killed loses the shard under its hands; the next run, or the restart that
`accelerate launch --max_restarts` makes, lists anew what is missing and deals it out over whatever processes there
are. Nothing is lost, as a run ends in an error while shards are missing; nothing doubled, as a number is a file name.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vivavoce.codec import codec_folder, load_codec
from vivavoce.core.checkpoint import atomic_path, read_json, resolve_folder, write_json
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.core.grid import Grid
from vivavoce.recipes.corpora.hub import is_dataset
from vivavoce.recipes.corpus import HOP, RATE, check_grid
from vivavoce.recipes.perturb import perturb, perturb_wave
from vivavoce.recipes.sources import Job, PackSource, Source, StreamSource
from vivavoce.recipes.tokens import TOKENS_FORMAT, Tokens, TokenSplit, shard_path
from vivavoce.units import HubertUnits, load_units
from vivavoce.units.prosody import quantise

__all__ = ["TokenSplit", "TokeniseConfig", "Tokeniser", "Tokens", "run"]

TYPES = {"codes": np.uint16, "prosody": np.int16, "content": np.uint32, "expression": np.uint8}
STALE_S = 600.0  # after which a half-written shard has no writer any more


@dataclass
class TokeniseConfig:
    """`vivavoce tokenize` reads this."""

    pack: str  # a pack, or a corpus folder with a dataset.json, which is streamed and need not fit on the disk
    codec: str  # model folders or hub ids
    units: str
    out: str
    splits: list[str] = field(default_factory=lambda: ["train", "valid", "test"])
    views: int = 2  # speaker-perturbed versions of each clip's units
    shard_clips: int = 512  # of a pack; a streamed data set gives a shard for each of its own
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # from a stream
    batch_frames: int = 1500  # frames in a batch, padding included; about 30 s keeps activations in cache
    threads: int | None = None  # CPU threads of a process
    workers: int = 1  # processes on this machine; on several, use `accelerate launch`
    warp: float = 0.17  # perturbation as in training the units
    eq_db: float = 5.0
    pitch_warp: float = 0.0
    speeds: list[float] = field(default_factory=list)  # copies of a pack's train split, played so many times as fast
    seed: int = 0
    precision: str = "no"  # of the perturbed views: no or bf16; all else is computed as it runs live


class Tokeniser:
    """Clips to tokens, in batches. Results do not depend on the batch, up to ties of floats."""

    def __init__(self, config: TokeniseConfig, device: torch.device | str = "cpu") -> None:
        if config.precision not in ("no", "bf16"):
            raise ConfigError(f"precision {config.precision!r}: use no or bf16")
        if any(not 0.5 <= v <= 2.0 or v == 1.0 for v in config.speeds) or len(set(config.speeds)) < len(config.speeds):
            raise ConfigError(f"speeds {config.speeds}: give different ones from 0.5 to 2, without 1 (the clip itself)")
        self.config, self.device = config, torch.device(device)
        self.codec = load_codec(config.codec).to(device)
        self.units = load_units(config.units).to(device)
        self.whole_clips = isinstance(self.units, HubertUnits)  # hears both ways: a clip, unpadded, at a time
        if config.pitch_warp and self.whole_clips:
            raise ConfigError("pitch_warp: moves harmonics of a spectrum, but these units hear waveforms; leave it 0")
        own = self.units.config.sample_rate, self.units.config.hop
        for name, (rate, hop) in ((config.codec, self.codec.hears), (config.units, own)):
            check_grid(name, rate, hop, config.pack)

    @property
    def columns(self) -> list[str]:
        """The names of the token columns, in order."""
        views = [f"{k}_{v}" for v in range(1, self.config.views + 1) for k in ("content", "expression")]
        return ["codes", "prosody", "content", "expression", *views]

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
        arrays = {k: y.cpu().numpy().astype(TYPES[k.split("_")[0]]) for k, y in columns.items()}
        long = {"codes": self.codec.grid.codes}
        return [{k: a[i, : long.get(k, int)(n)].reshape(-1) for k, a in arrays.items()} for i, n in enumerate(lengths)]

    def _units(self, source: Tensor) -> dict[str, Tensor]:
        """What `spectra` gave, of T + lookahead frames -> content [B, T] and expression [B, T, channels]."""
        (content, expression), _ = self.units.read(source)
        ahead = self.units.config.lookahead
        return {"content": content[:, ahead:], "expression": expression[:, ahead:]}

    def _perturbed(self, mel: Tensor, lengths: list[int], ids: list[str], view: int) -> Tensor:
        """Each clip's log-mel (or waveform in half hops) as another speaker's, drawn from (seed, clip id, view)
        alone, on the CPU."""
        c, out = self.config, torch.zeros_like(mel)
        change: Callable[..., Tensor] = perturb_wave if self.whole_clips else partial(perturb, pitch=c.pitch_warp)
        with torch.random.fork_rng(devices=[]):
            for row, source, n, name in zip(out, mel, lengths, ids):
                digest = hashlib.sha256(f"{c.seed}/{name}/{view}".encode()).digest()
                torch.manual_seed(int.from_bytes(digest[:7], "little"))
                n = 2 * (n + self.units.config.lookahead)
                row[:n] = change(source[None, :n], c.warp, c.eq_db)[0]
        return out


def run(config: TokeniseConfig) -> dict[str, float]:
    """Write (or finish) the shards. Processes of `accelerate launch` and workers share them by index.

    Returns:
        hours of audio tokenised by this process in this call, how many times faster than real time, and how many
        clips of a stream could not be read.

    Raises:
        CorpusError: no clips in the splits; `out` holds shards of other models or settings; shards are missing
            at the end.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available())
    out, writer = Path(config.out), ShardWriter(config, str(state.device))
    head = writer.head()
    if (out / "tokens.json").is_file():
        _check_same(out, head)
    state.wait_for_everyone()  # all have looked before one writes
    main = state.is_main_process
    todo: list[list[Job]] = [[]]
    if main:
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        write_json(out / "tokens.json", head)
        todo = [[j for j in writer.source.jobs if not all(p.is_file() for p in writer.paths(j))]]
    jobs = broadcast_object_list(todo)[0][state.process_index :: state.num_processes]
    total = writer.source.frames(jobs)
    began, done, skipped, hour = time.monotonic(), 0, 0, HOP / RATE / 3600
    style = "{l_bar}{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}]"
    style = style if total else "{desc}: {n:.2f} h of audio [{elapsed}]"
    with tqdm(total=total, unit_scale=hour, desc="tokenise", bar_format=style, disable=not main) as bar:
        for frames, bad in _work(writer, jobs):
            done, skipped = done + frames, skipped + bad
            bar.update(frames)
    state.wait_for_everyone()
    missing = sum(len(Tokens(out).missing(s)) for s in head["shards"])
    if missing:
        raise CorpusError(f"{out}: {missing} shards are missing; run the same command again to make them")
    result = {"hours": done * hour, "times_real_time": done * HOP / RATE / max(time.monotonic() - began, 1e-9)}
    return {**result, "skipped": skipped} if skipped else result


def _work(writer: ShardWriter, jobs: list[Job]) -> Iterator[tuple[int, int]]:
    """Do `jobs`, here or in worker processes; yields (frames done, clips skipped) as they come."""
    config = writer.config
    if config.workers <= 1 or len(jobs) < 2:
        for job in jobs:
            yield from ((n, 0) for n in writer.write(*job))
            yield 0, writer.source.take_skipped()
        return
    spawn = multiprocessing.get_context("spawn")  # a forked process hangs in torch's threads
    n = min(config.workers, len(jobs))
    try:
        with ProcessPoolExecutor(n, spawn, _start_worker, (config, writer.device)) as pool:
            yield from pool.map(_worker, jobs)
    except BrokenProcessPool:
        raise CorpusError(f"{config.out}: a worker was killed (out of memory?); fewer workers= or a smaller "
                          "batch_frames= may help, and the same command goes on with what is missing") from None


_writer: ShardWriter  # of a worker process


def _start_worker(config: TokeniseConfig, device: str) -> None:
    global _writer
    _writer = ShardWriter(config, device)


def _worker(job: Job) -> tuple[int, int]:
    return sum(_writer.write(*job)), _writer.source.take_skipped()


class ShardWriter:
    """What a process needs to write shards: a source of clips, the models."""

    def __init__(self, config: TokeniseConfig, device: str) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.device = config, device
        self.source: Source
        if is_dataset(config.pack):
            if config.speeds:
                raise ConfigError("speeds: only of a pack; make one with `vivavoce prepare`")
            self.source = StreamSource(config.pack, config.splits, config.exclude_licences)
        else:
            self.source = PackSource(config.pack, config.splits, config.shard_clips, config.speeds)
        self.tokeniser = Tokeniser(config, device)

    def head(self) -> dict[str, Any]:
        """What tokens.json says: all that the tokens depend on."""
        config, codec, units = self.config, self.tokeniser.codec.config, self.tokeniser.units.config
        return {
            "format": TOKENS_FORMAT,
            "sample_rate": RATE,
            "hop": HOP,
            "codebooks": codec.n_codebooks,
            "codebook_size": codec.codebook_size,
            "content_units": units.content_units,
            "content_levels": list(units.content_levels),
            "expression_levels": list(units.expression_levels),
            "codec_sha256": _sha256(codec_folder(config.codec) / "model.safetensors"),
            "units_sha256": self._units_sha256(),
            "pack_sha256": self.source.digest,
            **{k: getattr(config, k) for k in ("views", "warp", "eq_db", "seed", "shard_clips", "precision")},
            **{k: v for k in ("pitch_warp", "speeds") if (v := getattr(config, k))},  # absent from older tokens
            **grid_head(self.tokeniser.codec.grid),
            "shards": self.source.shards,
        }

    def _units_sha256(self) -> str:
        folder = resolve_folder(self.config.units)
        own = _sha256(folder / "model.safetensors")
        if not self.tokeniser.whole_clips:
            return own  # the weights say all of a native encoder; here window, layer and checkpoint count too
        return hashlib.sha256((own + _sha256(folder / "config.json")).encode()).hexdigest()

    def paths(self, job: Job) -> list[Path]:
        """The shards that a job writes."""
        return [shard_path(Path(self.config.out), s, k) for s, k in self.source.targets[job]]

    def write(self, part: str, index: int) -> Iterator[int]:
        """Tokenise one job and write its shards, each atomically; yields the frames of each batch as it is done."""
        targets = self.source.targets[part, index]
        rows: dict[str, list[tuple[dict[str, Any], dict[str, np.ndarray]]]] = {s: [] for s, _ in targets}
        for block in self.source.blocks(part, index):
            clips = [c for c, _ in block]
            done: dict[int, dict[str, np.ndarray]] = {}
            for batch in batches([c["frames"] for c in clips], self.config.batch_frames):
                waves = [block[i][1]() for i in batch]
                done.update(zip(batch, self.tokeniser(waves, [clips[i]["id"] for i in batch])))
                yield sum(clips[i]["frames"] for i in batch)
            for i, clip in enumerate(clips):
                rows[targets[0][0] if len(targets) == 1 else clip["split"]].append((clip, done[i]))
        for path, (split, _) in zip(self.paths((part, index)), targets):
            self._save(path, [c for c, _ in rows[split]], [r for _, r in rows[split]])

    def _save(self, path: Path, clips: list[dict[str, Any]], rows: list[dict[str, np.ndarray]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {}
        for name, kind in self.source.schema.items():
            columns[name] = pa.array([_plain(c.get(name), kind) for c in clips], kind)
        for name in self.tokeniser.columns:
            ends = np.cumsum([0] + [len(r[name]) for r in rows], dtype=np.int32)
            none = np.zeros(0, TYPES[name.split("_")[0]])
            values = pa.array(np.concatenate([none, *(r[name] for r in rows)]))
            columns[name] = pa.ListArray.from_arrays(pa.array(ends), values)
        grid = self.tokeniser.codec.grid
        if grid.ratio != 1:
            columns["code_frames"] = pa.array([grid.codes(c["frames"]) for c in clips], pa.int32())
        path.parent.mkdir(parents=True, exist_ok=True)
        data = pa.table(columns)
        with atomic_path(path) as temp:
            if clips:
                pq.write_table(data, temp, compression="zstd")
            else:  # `datasets` stumbles over a row group without rows, not over a file without row groups
                pq.ParquetWriter(temp, data.schema).close()


def grid_head(grid: Grid) -> dict[str, Any]:
    """What tokens.json says of the frame rates: nothing where they are equal."""
    u, c = grid.tick
    return {} if u == c else {"tick": [u, c]}


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


def _plain(value: Any, kind: Any) -> Any:
    if str(kind) == "string" and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _sweep(out: Path) -> None:
    """Remove what killed writers left half-written; what is young may have a writer still."""
    for path in out.glob("*/.*.parquet.*"):
        if time.time() - path.stat().st_mtime > STALE_S:
            path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_same(out: Path, head: dict[str, Any]) -> None:
    found = read_json(out / "tokens.json")
    differ = [k for k in sorted({*head, *found}) if found.get(k) != head.get(k)]
    if differ:
        raise CorpusError(f"{out}: shards from another tokeniser version ({', '.join(differ)} differ); "
                          "choose another out= or remove it")
