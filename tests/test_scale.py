"""Many processes and little memory: shards when a worker is killed, streams, memory maps, DDP, FSDP, resuming.

Processes are real ones, started by `accelerate launch` on the CPU (gloo).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from vivavoce.codec import Codec, CodecConfig
from vivavoce.core.checkpoint import load_tensors, read_json
from vivavoce.core.config import load_config
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes import corpus, default, tokenise, train_codec, train_lm, train_units
from vivavoce.recipes.corpora import hub
from vivavoce.recipes.corpus import HOP, RATE, Pack, PrepareConfig
from vivavoce.recipes.tokenise import TokeniseConfig
from vivavoce.recipes.tokens import Frames, Tokens, TokenSplit
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder, UnitsConfig

for package in ("accelerate", "datasets", "tensorboard"):  # the extra `train`
    pytest.importorskip(package)
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RECIPES = Path(corpus.__file__).parent
CLIPS = 24


def sound(n: int, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(n) / RATE
    f = rng.uniform(100, 250)
    x = sum(np.sin(2 * np.pi * f * k * t + k) / k for k in range(1, 12)) * np.sin(2 * np.pi * 3 * t) ** 2
    return (0.1 * x + 0.01 * rng.normal(size=n)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A pack of 24 clips by 4 speakers, untrained toy models, and the tokens of a single process."""
    root = tmp_path_factory.mktemp("scale")
    rng = np.random.default_rng(0)
    lines = []
    (root / "corpus").mkdir()
    for n in range(CLIPS):
        soundfile.write(root / f"corpus/{n}.wav", sound(HOP * int(rng.integers(20, 60)), rng), RATE)
        lines.append({"id": f"c{n}", "path": f"{n}.wav", "speaker": f"s{n % 4}", "licence": "CC0-1.0",
                      "emotion": ["calm", "glad", None][n % 3], "split": "valid" if n >= 16 else "train"})  # fmt: skip
    (root / "corpus/manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in lines))
    corpus.prepare(PrepareConfig(str(root / "corpus"), str(root / "pack"), pitch=False, workers=1))
    recipe = load_config(default.DefaultRecipe, RECIPES / "toy.yaml")
    torch.manual_seed(1)
    Codec(CodecConfig(**recipe.codec["model"])).save_pretrained(root / "codec")
    UnitEncoder(UnitsConfig(**recipe.units["model"])).save_pretrained(root / "units")
    made = SimpleNamespace(root=root, pack=str(root / "pack"), codec=str(root / "codec"), units=str(root / "units"))
    tokenise.run(token_config(made, root / "tokens"))
    return made


def token_config(made: SimpleNamespace, out: Path, pack: str | None = None, **more) -> TokeniseConfig:
    return TokeniseConfig(pack or made.pack, made.codec, made.units, str(out), shard_clips=2, views=1, **more)


def lm_config(made: SimpleNamespace, out: Path, steps: int) -> train_lm.LMRecipe:
    recipe = load_config(default.DefaultRecipe, RECIPES / "toy.yaml", [f"corpus={made.pack}", f"out={out}"])
    recipe.lm.update(tokens=str(made.root / "tokens"), codec=None)
    config = default.stages(recipe)["lm"]
    config.train = TrainConfig(str(out), steps=steps, warmup_steps=2, validate_every=100)
    return config


def launch(script: str, tmp_path: Path, *arguments: str, config: str = "ddp.yaml") -> subprocess.CompletedProcess:
    """Run a script (or `-m module ...`) in two processes, as a user would."""
    # without --cpu: that makes accelerate start a single process where there is no mpirun
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
             str(RECIPES / "accelerate" / config), "--num_processes", "2", "--main_process_port", "0"]  # fmt: skip
    if script:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(script))
        start.append(str(path))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*start, *arguments], capture_output=True, text=True, env=env, timeout=600)


def same_shards(a: Path, b: Path) -> None:
    """Exactly the same shards, with the same in them."""
    names = sorted(p.relative_to(a).as_posix() for p in a.glob("*/*.parquet") if p.name[0] != ".")
    assert names == sorted(p.relative_to(b).as_posix() for p in b.glob("*/*.parquet") if p.name[0] != ".")
    for name in names:
        assert pq.read_table(a / name).equals(pq.read_table(b / name)), name


# --- tokenising


KILLED = """
    import os, signal, sys
    import pyarrow.parquet as pq
    from vivavoce.recipes import tokenise

    pack, codec, units, out = sys.argv[1:]
    write, count = pq.write_table, 0

    def dies(table, path, **more):  # the second shard of the second process is left half-written
        global count
        count += 1
        if os.environ["RANK"] == "1" and count == 2:
            open(path, "wb").write(b"PAR1 and no more")
            os.kill(os.getpid(), signal.SIGKILL)
        write(table, path, **more)

    pq.write_table = dies
    tokenise.run(tokenise.TokeniseConfig(pack, codec, units, out, shard_clips=2, views=1))
"""


def test_a_killed_worker_loses_and_doubles_nothing(made, tmp_path):
    out = tmp_path / "t"
    died = launch(KILLED, tmp_path, made.pack, made.codec, made.units, str(out))
    assert died.returncode != 0 and "SIGKILL" in died.stdout + died.stderr, died.stderr[-2000:]
    left = [p.name for p in out.glob("*/.*.parquet.*")]
    done = [p for p in out.glob("*/*.parquet") if p.name[0] != "."]
    assert len(left) >= 1 and 1 <= len(done) < 12
    with pytest.raises(CorpusError, match="run the tokeniser again"):
        Tokens(out).split("train")
    stamps = {p: p.stat().st_mtime_ns for p in done}
    for p in out.glob("*/.*.parquet.*"):
        os.utime(p, (0, 0))  # as if hours had passed
    settings = [f"codec={made.codec}", f"units={made.units}", "shard_clips=2", "views=1", f"pack={made.pack}"]
    (tmp_path / "tokens.yaml").write_text("{}")
    again = launch("", tmp_path, "-m", "vivavoce", "tokenize", str(tmp_path / "tokens.yaml"), "-o", str(out), *settings)
    assert again.returncode == 0, again.stderr[-3000:]
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}  # nothing was made twice
    same_shards(out, made.root / "tokens")
    assert not list(out.glob("*/.*"))  # the half-written one is gone
    split = Tokens(out).split("train")
    assert [c["id"] for c in split.clips] == [f"c{n}" for n in range(16)]


def test_what_is_missing_is_dealt_out_evenly(made, tmp_path, monkeypatch):
    """Any number of processes, any holes: each missing shard goes to exactly one of them."""
    import accelerate

    holes = ["train/00000", "train/00003", "train/00004", "train/00007", "valid/00001"]
    for n in (1, 2, 3):
        out = shutil.copytree(made.root / "tokens", tmp_path / str(n), ignore=shutil.ignore_patterns(".arrow"))
        for name in holes:
            (out / f"{name}.parquet").unlink()
        taken: list[list] = []
        monkeypatch.setattr(tokenise, "_work", lambda writer, jobs, taken=taken: taken.append(jobs) or [])
        monkeypatch.setattr(tokenise.Tokens, "missing", lambda self, name: [])
        for rank in range(n):
            state = SimpleNamespace(process_index=rank, num_processes=n, is_main_process=True, device="cpu",
                                    wait_for_everyone=lambda: None)  # fmt: skip
            monkeypatch.setattr(accelerate, "PartialState", lambda cpu, state=state: state)
            tokenise.run(token_config(made, out))
        assert sorted(f"{s}/{k:05d}" for jobs in taken for s, k in jobs) == holes
        assert max(map(len, taken)) - min(map(len, taken)) <= 1
        monkeypatch.undo()


def dies(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_pool_worker_is_told(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "_start_worker", dies)
    with pytest.raises(CorpusError, match=r"a worker was killed .* the same command goes on"):
        tokenise.run(token_config(made, tmp_path / "t", workers=2))


# --- streams


@pytest.fixture
def streamed(made, tmp_path, monkeypatch) -> Path:
    """The corpus as a data set of three Parquet files with embedded audio, one clip of it broken."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "data").mkdir()
    for k in range(3):
        rows = []
        for n in range(k, CLIPS, 3):
            data = (made.root / f"corpus/{n}.wav").read_bytes() if n != 7 else b"no sound"
            rows.append({"audio": {"bytes": data, "path": None}, "name": f"c{n}", "who": n % 4, "weight": n / 2})
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data/train-{k:05d}-of-00003.parquet")
    fields = {"id": "name", "speaker": "who", "licence": "CC0-1.0", "age": "weight", "split": "train"}
    hub.write_dataset(str(tmp_path / "data"), tmp_path / "corpus", fields)
    return tmp_path / "corpus"


def test_stream_into_tokens(made, streamed, tmp_path, capsys):
    out = tmp_path / "t"
    result = tokenise.run(token_config(made, out, str(streamed)))
    assert result["skipped"] == 1 and "cannot be read" in capsys.readouterr().out
    split, whole = Tokens(out).split("train"), Tokens(made.root / "tokens").split("train")
    assert Tokens(out).head["shards"] == {"train": 3}
    ids = [c["id"] for c in split.clips]
    assert sorted(ids) == sorted(f"c{n}" for n in range(CLIPS) if n != 7)
    row = split.clips[ids.index("c5")]
    assert (row["speaker"], row["age"], row["licence"], row["split"]) == ("1", 2.5, "CC0-1.0", "train")
    for i, clip in enumerate(whole.clips):  # the same clips give the same tokens as by way of a pack
        if clip["id"] == "c7":
            continue
        at, j = ids.index(clip["id"]), i
        a = slice(int(split.offsets[at]), int(split.offsets[at + 1]))
        b = slice(int(whole.offsets[j]), int(whole.offsets[j + 1]))
        pairs = ((split.content, whole.content), (split.codes, whole.codes), (split.views[0][1], whole.views[0][1]))
        for got, want in pairs:
            assert got[a].shape == want[b].shape and np.mean(got[a] == want[b]) > 0.95
    kept = (out / "train/00000.parquet").stat().st_mtime_ns
    before = pq.read_table(out / "train/00001.parquet")
    (out / "train/00001.parquet").unlink()
    tokenise.run(token_config(made, out, str(streamed)))
    assert pq.read_table(out / "train/00001.parquet").equals(before)
    assert (out / "train/00000.parquet").stat().st_mtime_ns == kept


def test_stream_is_split_by_speaker(made, streamed, tmp_path):
    """A lone train split: a shard may hold clips of any split, and some shards of a split are empty."""
    import datasets

    spec = read_json(streamed / "dataset.json")
    del spec["same"]["split"]
    (streamed / "dataset.json").write_text(json.dumps(spec))
    out = tmp_path / "t"
    tokenise.run(token_config(made, out, str(streamed), workers=2, threads=1))
    assert Tokens(out).head["shards"] == {"train": 3, "valid": 3, "test": 3}
    numbers = [n for n in range(CLIPS) if n != 7]
    want = {s: [n for n in numbers if split_of(str(n % 4)) == s] for s in ("train", "valid", "test")}
    for name, numbers in want.items():
        rows = [r for k in range(3) for r in pq.read_table(out / f"{name}/{k:05d}.parquet").to_pylist()]
        assert sorted(r["id"] for r in rows) == sorted(f"c{n}" for n in numbers)
        if numbers:
            assert len(Tokens(out).split(name).clips) == len(numbers)
        else:
            with pytest.raises(CorpusError, match="holds no clip"):
                Tokens(out).split(name)
    assert not all(want.values())  # so that emptiness was met
    files = {s: [str(p) for p in sorted((out / s).glob("*.parquet"))] for s in want if want[s]}
    assert datasets.load_dataset("parquet", data_files=files).num_rows == {s: len(n) for s, n in want.items() if n}


def split_of(speaker: str) -> str:
    from vivavoce.recipes.corpora.common import split_speakers

    return split_speakers([speaker])[speaker]


def test_stream_refuses(made, streamed, tmp_path):
    spec = read_json(streamed / "dataset.json")
    spec["same"]["licence"] = "CC-BY-NC-4.0"
    (streamed / "dataset.json").write_text(json.dumps(spec))
    with pytest.raises(CorpusError, match="exclude_licences"):
        tokenise.run(token_config(made, tmp_path / "t", str(streamed)))
    tokenise.run(token_config(made, tmp_path / "t", str(streamed), exclude_licences=[]))
    spec["load"]["path"] = str(tmp_path / "gone")
    (streamed / "dataset.json").write_text(json.dumps(spec))
    with pytest.raises(CorpusError, match="cannot be loaded as a data set"):
        tokenise.run(token_config(made, tmp_path / "t2", str(streamed)))


# --- memory maps


def in_memory(split: TokenSplit) -> TokenSplit:
    """The same split as plain arrays."""
    def whole(f: Frames) -> Frames:
        return Frames([np.concatenate([np.array(p) for p in f.parts])])

    return TokenSplit(split.clips, split.frames, split.offsets, whole(split.content), whole(split.expression),
                      whole(split.prosody), whole(split.codes),
                      [(whole(a), whole(b)) for a, b in split.views])  # fmt: skip


def test_maps_give_the_same_sequences_as_memory(made):
    split = Tokens(made.root / "tokens").split("train")
    assert len(split.codes.parts) == 8 and not any(p.flags.owndata for p in split.codes.parts)
    plain, config = in_memory(split), lm_config(made, made.root / "x", 1)
    rng = np.random.default_rng(0)
    for a, b in ((split.codes, plain.codes), (split.content, plain.content), (split.views[0][1], plain.views[0][1])):
        assert a.shape == b.shape and a.dtype == b.dtype and (a[:] == b[:]).all() and (a[3:99:7] == b[3:99:7]).all()
        assert np.array_equal(a, b) and np.max(a) == a[:].max()
        for n in (1, 5, 300):
            index = rng.integers(0, len(a), n)
            assert (a[index] == b[index]).all() and a[index].shape == b[index].shape
    one, other = train_lm.Sequences(split, config), train_lm.Sequences(plain, config)
    for seed in range(10):
        (r, s) = (np.random.default_rng(seed) for _ in range(2))
        x, y = one.target(r, 1), other.target(s, 1)
        assert x[0] == y[0] and all((p == q).all() for p, q in zip(x[1:], y[1:]))
        p, q = one.prompt(r, x[0], x[1], 40), other.prompt(s, y[0], y[1], 40)
        assert (p == q).all()
        speakers = {split.clips[c]["speaker"] for c in x[0]}
        at = np.searchsorted(split.offsets, p, side="right") - 1
        assert speakers == {split.clips[int(c)]["speaker"] for c in at} and not set(at) & set(x[0])


def test_maps_cost_no_memory(tmp_path):
    """40 MB of tokens are mapped, not loaded: Arrow allocates less than a tenth of it."""
    frames, rows = 20_000, 25
    rng = np.random.default_rng(0)
    head = {"format": 1, "sample_rate": RATE, "hop": HOP, "codebooks": 8, "codebook_size": 1024, "content_units": 500,
            "expression_levels": [7, 7, 7], "views": 1, "shards": {"train": 4}}  # fmt: skip
    (tmp_path / "train").mkdir()
    (tmp_path / "tokens.json").write_text(json.dumps(head))
    for k in range(4):
        columns = {"id": [f"{k}-{i}" for i in range(rows)], "frames": pa.array([frames] * rows, pa.int32())}
        for name, width, kind in (("codes", 8, np.uint16), ("prosody", 3, np.int16), ("content", 1, np.uint16),
                                  ("expression", 3, np.uint8), ("content_1", 1, np.uint16),
                                  ("expression_1", 3, np.uint8)):  # fmt: skip
            ends = pa.array(np.arange(rows + 1, dtype=np.int32) * frames * width)
            values = pa.array(rng.integers(0, 7, rows * frames * width).astype(kind))
            columns[name] = pa.ListArray.from_arrays(ends, values)
        pq.write_table(pa.table(columns), tmp_path / f"train/{k:05d}.parquet", compression="zstd")
    del columns, values, ends
    Tokens(tmp_path).split("train")  # unpacks
    before = pa.total_allocated_bytes()
    split = Tokens(tmp_path).split("train")
    index = np.random.default_rng(1).integers(0, len(split.codes), 1000)
    assert split.codes[index].shape == (1000, 8) and len(split.codes) == 4 * rows * frames
    size = len(split.codes) * (16 + 6 + 2 + 3 + 2 + 3)
    assert size > 40e6 and pa.total_allocated_bytes() - before < size / 10
    labels, values = split.labels("id")
    assert values[labels[37]] == split.clips[37]["id"] == "1-12" and split.labels("none")[0].max() == -1


def test_unknown_speakers_prompt_for_nobody_else(made):
    split = Tokens(made.root / "tokens").split("train")
    labels = split.labels
    split.labels = lambda f: (np.full(16, -1), []) if f == "speaker" else labels(f)  # type: ignore[method-assign]
    config = lm_config(made, made.root / "x", 1)
    with pytest.raises(CorpusError, match="nothing to prompt with"):
        train_lm.Sequences(split, config)
    split.frames = split.frames + 200
    assert [train_lm.Sequences(split, config).peers(i).tolist() for i in (0, 15)] == [[0], [15]]


# --- training in two processes


TRAINED = """
    import shutil, sys, torch
    from types import SimpleNamespace
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from test_scale import lm_config
    from vivavoce.recipes import train_lm, trainer

    root, out = Path(sys.argv[1]), Path(sys.argv[3])
    made = SimpleNamespace(root=root, pack=str(root / "pack"))
    state = PartialState(cpu=True)
    assert state.num_processes == 2 and state.backend == "gloo", state

    def shard_from_here_on():
        # accelerate gives FSDP to GPUs only; on CPUs its state has to be told
        plugin = FullyShardedDataParallelPlugin()  # as fsdp.yaml says, by way of the environment
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        assert plugin.fsdp_version == 2 and plugin.transformer_cls_names_to_wrap == ["Block"], plugin

    def fork(a, b):
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.copytree(out / a, out / b)
        state.wait_for_everyone()

    train_lm.run(lm_config(made, out / "ddp", 3))
    fork("ddp", "ddp-ddp")
    train_lm.run(lm_config(made, out / "ddp-ddp", 5))
    fork("ddp", "ddp-fsdp")
    save, kinds = trainer._save, set()

    def watched(model, *rest):
        kinds.update(type(p).__name__ for p in model.parameters())
        save(model, *rest)

    shard_from_here_on()
    trainer._save = watched
    train_lm.run(lm_config(made, out / "ddp-fsdp", 5))
    train_lm.run(lm_config(made, out / "fsdp", 3))
    assert Accelerator().is_fsdp2 and kinds == {"DTensor"}, kinds
    torch.distributed.destroy_process_group()  # or its threads are cut off at exit, now and then with an abort
"""


def test_ddp_and_fsdp_train_alike_and_resume_each_other(made, tmp_path):
    """Two processes of each; then a single one goes on with what they made."""
    Tokens(made.root / "tokens").split("train")
    ran = launch(TRAINED, tmp_path, str(made.root), str(Path(__file__).parent), str(tmp_path), config="fsdp.yaml")
    assert ran.returncode == 0, ran.stderr[-4000:]
    runs = {n: load_tensors(tmp_path / n / "last.safetensors")[0] for n in ("ddp", "fsdp", "ddp-ddp", "ddp-fsdp")}
    for a, b, step in (("ddp", "fsdp", 3), ("ddp-ddp", "ddp-fsdp", 5)):
        assert int(runs[a]["step"]) == int(runs[b]["step"]) == step and runs[a].keys() == runs[b].keys()
        for k, x in runs[a].items():
            assert x.shape == runs[b][k].shape, k
            if k != "minutes":
                torch.testing.assert_close(x, runs[b][k], atol=2e-5, rtol=1e-3, msg=lambda m, k=k: f"{k}: {m}")
    for name in ("fsdp", "ddp-fsdp"):  # exported whole, and what was exported is what was trained
        assert read_json(tmp_path / name / "run.json")["model"] == "VoiceLM"
        exported = load_tensors(tmp_path / name / "export/model.safetensors")[0]
        assert all(torch.equal(v, runs[name][f"model.{k}"]) for k, v in exported.items())
    train_lm.run(lm_config(made, tmp_path / "ddp-fsdp", 6))
    last = load_tensors(tmp_path / "ddp-fsdp/last.safetensors")[0]
    assert int(last["step"]) == 6 and all(torch.isfinite(v).all() for v in last.values())
    moved = [k for k in last if k.startswith("model.") and not torch.equal(last[k], runs["ddp-fsdp"][k])]
    assert len(moved) > 10
    steps = {float(v) for k, v in last.items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert steps == {6.0}  # the moments came along


# --- what does not fit is named before training starts


def test_sample_rates_are_compared_first(made, tmp_path):
    recipe = load_config(default.DefaultRecipe, RECIPES / "toy.yaml", ["corpus=/c", f"out={tmp_path}"])
    for section in (recipe.codec, recipe.units):
        section["pack"] = made.pack
    stages = default.stages(recipe)
    stages["codec"].model.sample_rate = 24000
    stages["units"].model.hop = 240
    message = r"made for 24000 Hz and hop 320, but .*pack holds 16000 Hz and hop 320"
    with pytest.raises(ConfigError, match=message):
        train_codec.run(stages["codec"])
    with pytest.raises(ConfigError, match=r"made for 16000 Hz and hop 240, but .* holds 16000 Hz and hop 320"):
        train_units.run(stages["units"])
    other = Codec(CodecConfig(**{**recipe.codec["model"], "sample_rate": 24000}))
    other.save_pretrained(tmp_path / "other")
    config = token_config(made, tmp_path / "t")
    config.codec = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=message):
        tokenise.run(config)
    lm = lm_config(made, tmp_path / "lm", 1)
    lm.codec = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has 75 frames a second, but .*tokens was made with 50"):
        train_lm.run(lm)
    assert not (tmp_path / "lm").exists() and not (tmp_path / "codec").exists()  # nothing has begun
    head = read_json(Path(made.pack) / "pack.json")
    shutil.copytree(made.pack, tmp_path / "p24")
    (tmp_path / "p24/pack.json").write_text(json.dumps({**head, "sample_rate": 24000}))
    with pytest.raises(CorpusError, match="another format or sample rate"):
        Pack(tmp_path / "p24")


def test_any_file_rate_becomes_the_packs(tmp_path):
    """Files of mixed rates are no mismatch: they are resampled; an impossible one is named and skipped."""
    for rate in (8000, 44100, 48000):
        soundfile.write(tmp_path / f"{rate}.wav", np.sin(np.arange(rate) / 20) * 0.1, rate)
    soundfile.write(tmp_path / "odd.wav", np.zeros(100), 99991)
    corpus.prepare(PrepareConfig(str(tmp_path), str(tmp_path / "p"), pitch=False, workers=1))
    assert {c["frames"] for c in Pack(tmp_path / "p").clips} >= {50}


def test_bytes_stream_as_files_do(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([np.ones(800) * 0.1, np.ones(800) * 0.3], 1), 8000, format="WAV")
    x = corpus.read_clip(tmp_path, {"id": "a", "channel": 2}, buffer.getvalue())
    assert len(x) == 1600 and abs(np.median(x) - 0.3) < 0.01
