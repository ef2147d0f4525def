"""EnCodec as the codec of the voice changer: 75 codes a second beside 50 units, from corpus to live stream."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from vivavoce.changer import Changer, load
from vivavoce.codec import Codec, Encodec, EncodecConfig, EncodecVoice, load_codec
from vivavoce.core.audio import save
from vivavoce.core.checkpoint import read_json
from vivavoce.core.config import load_config
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.core.grid import Grid
from vivavoce.core.resample import resample
from vivavoce.engine import Settings
from vivavoce.lm import Source
from vivavoce.recipes import default, train_lm
from vivavoce.recipes.corpus import Pack
from vivavoce.recipes.tokenise import Tokens
from vivavoce.units import prosody

for package in ("accelerate", "tensorboard", "pyarrow"):  # the extra `train`
    pytest.importorskip(package)

TOY = Path(default.__file__).with_name("toy.yaml")
GRID = Grid(Fraction(50), Fraction(75))
RATE = 16000


def random_encodec(**more: Any) -> Encodec:
    """A small 24 kHz EnCodec whose codes differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        shape = {"n_filters": 4, "dimension": 8, "n_codebooks": 6, "codebook_size": 32, "bandwidths": [0.75, 2.25]}
        model = Encodec(EncodecConfig(**{**shape, **more})).eval()
        if model.config.causal:
            z, _ = model.encoder(tiny.voiced(0.5, 24000)[None, None], None, True)
            for book in model.quantiser.books:
                book.vectors.mul_(float(z.detach().std()))
    return model


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Corpus -> pack -> tokens -> language model -> model folder, with an EnCodec that is taken as it is."""
    root = tmp_path_factory.mktemp("encodec")
    for i in range(8):
        folder = root / "corpus" / ("ann" if i % 2 else "bob")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{i}.wav", tiny.voiced(0.9 + 0.11 * i, RATE, (120.0, 210.0)[i % 2], seed=i), RATE)
    random_encodec().save_pretrained(root / "codec")
    over = [f"corpus={root / 'corpus'}", f"out={root / 'run'}", f"codec={root / 'codec'}", "lm.crop_frames=30"]
    model = default.run(load_config(default.DefaultRecipe, TOY, over))
    return SimpleNamespace(root=root, over=over, model=model, pack=Pack(root / "run/pack"))


@pytest.fixture(scope="module")
def changer(toy: SimpleNamespace) -> Changer:
    return load(toy.model)


# ---- the grid -----------------------------------------------------------------------------------------


def test_grid_of_equal_rates_is_the_identity() -> None:
    t = np.arange(50)
    assert Grid().tick == (1, 1) and (Grid().unit(t) == t).all() and (Grid().codes(t) == t).all()
    assert (Grid().ahead(t, 2) == t + 2).all()


def test_grid_of_50_and_75_hz() -> None:
    assert GRID.tick == (2, 3)
    t = np.arange(30)
    assert GRID.unit(t)[:7].tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert (GRID.unit(t) / 50 <= t / 75).all() and (t / 75 < (GRID.unit(t) + 1) / 50).all()  # it covers it
    for u in range(20):
        of_u = [k for k in range(40) if GRID.unit(k) == u]
        assert of_u == list(range(GRID.codes(u), GRID.codes(u + 1))) and len(of_u) == 2 - u % 2
    assert (GRID.unit(GRID.ahead(t, 3)) == GRID.unit(t) + 3).all()
    with pytest.raises(ConfigError, match=r"12\.5 frames a second is slower"):
        Grid(Fraction(50), Fraction(25, 2))


# ---- recipe -------------------------------------------------------------------------------------------


def test_the_codec_ships_with_the_codebooks_that_are_written(toy: SimpleNamespace) -> None:
    own, shipped = Encodec.from_pretrained(toy.root / "codec"), Encodec.from_pretrained(toy.model / "codec")
    assert shipped.config == replace(own.config, n_codebooks=2, bandwidths=[0.75])
    assert torch.equal(shipped.quantiser.books[1].vectors, own.quantiser.books[1].vectors)  # not rounded
    assert read_json(toy.model / "config.json")["sample_rate"] == RATE
    x = tiny.voiced(0.3, 24000)[None]
    assert torch.equal(shipped.encode(x), own.encode(x, 0.75))


def test_the_recipe_that_ships(toy: SimpleNamespace) -> None:
    path = TOY.with_name("encodec.yaml")
    assert load_config(default.DefaultRecipe, path).codec == "encodec_24khz"
    configs = default.stages(load_config(default.DefaultRecipe, path, [f"codec={toy.root / 'codec'}", "out=/o"]))
    assert configs["codec"] == default.FinishedCodec(str(toy.root / "codec"), 8)
    lm = configs["lm"]
    assert (lm.crop_frames, lm.model.n_codebooks, lm.model.context, lm.model.codebook_size) == (225, 8, 150, 32)
    assert lm.codec == configs["tokenise"].codec == "/o/model/codec" and lm.train.budget_minutes


def test_tokens_hold_75_codes_a_second_beside_50_units(toy: SimpleNamespace) -> None:
    import pyarrow.parquet as pq

    folder, codec = toy.root / "run/tokens", Encodec.from_pretrained(toy.model / "codec")
    assert read_json(folder / "tokens.json")["tick"] == [2, 3]
    rows = [r for p in sorted((folder / "train").glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
    for row, clip in zip(rows, toy.pack.split("train"), strict=True):
        assert len(row["content"]) == len(row["content_1"]) == row["frames"] == clip["frames"]
        assert row["code_frames"] == -(-3 * row["frames"] // 2) and len(row["codes"]) == 2 * row["code_frames"]
        wave = torch.from_numpy(toy.pack.waveform(clip["offset"], clip["frames"]))[None]
        y = resample(wave, RATE, 24000)
        y = torch.nn.functional.pad(y, (0, row["code_frames"] * 320 - y.shape[1]))
        assert np.mean(codec.encode(y)[0].reshape(-1).numpy() == row["codes"]) > 0.99
    split = Tokens(folder).split("train")
    assert split.frames.tolist() == [r["code_frames"] for r in rows]
    for i, row in enumerate(rows):
        at, t = slice(split.offsets[i], split.offsets[i + 1]), np.arange(row["code_frames"])
        assert (split.content[at] == np.array(row["content"])[t * 2 // 3]).all()
        assert (split.prosody[at] == np.array(row["prosody"]).reshape(-1, 3)[t * 2 // 3]).all()
        assert (split.views[0][0][at] == np.array(row["content_1"])[t * 2 // 3]).all()
        assert (split.codes[at].reshape(-1) == row["codes"]).all()


def test_training_looks_whole_unit_frames_ahead(toy: SimpleNamespace) -> None:
    """A position that is trained with delay d has the units d unit frames after those that cover it."""
    config = default.stages(load_config(default.DefaultRecipe, TOY, toy.over))["lm"]
    split = Tokens(config.tokens).split("train")
    sequences = train_lm.Sequences(split, config)
    for seed in range(5):
        for delay in (0, 1, 2):
            used, codes, units, _ = sequences.target(np.random.default_rng(seed), delay)
            i, start = 0, int(split.offsets[used[0]])
            n = min(len(codes), int(split.offsets[used[0] + 1]) - start)
            for t, u in zip(codes[:n] - start, units[:n] - start):
                last = GRID.unit(int(split.offsets[used[0] + 1]) - start - 1)
                assert GRID.unit(int(u)) == min(GRID.unit(int(t)) + delay, last), i


def test_another_codec_than_the_tokens_is_named_before_training(toy: SimpleNamespace, tmp_path: Path) -> None:
    config = default.stages(load_config(default.DefaultRecipe, TOY, toy.over))["lm"]
    for model, match in (
        (Codec(tiny.CODEC), "has 50 frames a second, but .* was made with 75"),
        (random_encodec(n_codebooks=3), "has 3 codebooks, but .* was made with 2"),
        (random_encodec(codebook_size=64), "has 64 codes a codebook, but .* was made with 32"),
    ):
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=match):
            train_lm.LMTask(replace(config, codec=str(tmp_path)))


def test_what_is_no_voice_codec_is_refused(tmp_path: Path) -> None:
    random_encodec(channels=2, causal=False, segment_seconds=1.0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot stream; a voice changer needs"):
        load_codec(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        load_codec(tmp_path.parent)


# ---- conversion ---------------------------------------------------------------------------------------


def pushed(changer: Changer, x: Tensor, sizes: list[int], rate: int = RATE, **settings: Any) -> Tensor:
    stream = changer.stream("ann", rate, Settings(source_register=120.0, **settings))
    return torch.cat([stream.push(p) for p in x.split(sizes)] + [stream.flush()])


@pytest.fixture(scope="module", autouse=True)
def ann(toy: SimpleNamespace, changer: Changer) -> None:
    changer.voices["ann"] = changer.enroll(tiny.voiced(2.0, RATE, 210.0, seed=9), RATE, "ann")


def test_a_file_is_converted(changer: Changer, tmp_path: Path) -> None:
    assert isinstance(changer.codec, EncodecVoice)
    x = tiny.voiced(0.7, 44100)
    save(tmp_path / "x.wav", x, 44100)
    y, rate = changer.convert(tmp_path / "x.wav", "ann")
    assert rate == 44100 and len(y) == len(x) and bool(torch.isfinite(y).all()) and float(y.std()) > 1e-4
    z, _ = changer.convert(tmp_path / "x.wav", "ann", settings=Settings(seed=1))
    assert not torch.equal(y, z)
    heard, rate = changer.preview("ann")
    assert rate == 24000 and len(heard) == 320 * changer.voices["ann"].frames


def test_a_voice_is_as_long_as_with_any_codec(changer: Changer) -> None:
    voice = changer.enroll(tiny.voiced(5.0, RATE), RATE)
    assert voice.frames == 225 and voice.codes.shape == (225, 2)  # 3 s
    content, _, _, codes = changer.tokenise(tiny.voiced(0.5, RATE))
    assert len(content) == len(codes) == 38


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_any_chunking_gives_the_same_bits(changer: Changer, delay: int) -> None:
    x = tiny.voiced(0.5, RATE)
    rng, sizes = random.Random(delay), []
    while sum(sizes) < len(x):
        sizes.append(min(rng.choice((1, 7, 160, 319, 640, 1600)), len(x) - sum(sizes)))
    assert torch.equal(pushed(changer, x, sizes, delay=delay), pushed(changer, x, [len(x)], delay=delay))


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_length_and_stated_latency(changer: Changer, rate: int) -> None:
    """Over the stream as many samples as went in; never more than the stated latency is owed."""
    for n in (1, 320, 321, 641, 5000):
        assert len(pushed(changer, tiny.voiced(0.4, rate)[:n], [n], rate)) == n
    stream = changer.stream("ann", rate, Settings(delay=1))
    assert stream.latency.overlap == 0 and stream.latency.frame == 20
    most = taken = given = 0
    for part in tiny.voiced(0.3, rate).split(rate // 8000):
        most = max(most, taken + len(part) - given)
        given += len(stream.push(part))
        taken += len(part)
    assert most <= stream.latency.total * rate / 1000 + rate // 8000 + 2


def test_a_live_frame_is_the_offline_recipe(changer: Changer) -> None:
    """The engine, step by step, against its parts called once: units of the whole, the model's codes, the decoder."""
    x, delay = tiny.voiced(0.4, RATE), 1
    engine_out = pushed(changer, x, [320] * 20, delay=delay, temperature=0.0, guidance=0.0)
    voice, lm, grid = changer.voice("ann"), changer._live_lm, changer.codec.grid
    ahead = changer.units.config.lookahead + delay
    padded = torch.nn.functional.pad(x, (0, ahead * 320))
    with torch.inference_mode():
        units, state = [], None
        for frame in padded.split(320):
            heard, state = changer._live_units(frame[None], state)
            units.append(heard)
        frames, _ = changer.codec.framing(padded[None])
        level = changer.codec.level(frames)
        f0, periodicity, content, expression = (
            torch.cat([getattr(u, k) for u in units[changer.units.config.lookahead :]], dim=1)
            for k in ("f0", "periodicity", "content", "expression"))  # fmt: skip
        n = f0.shape[1]
        f0, periodicity, level = prosody.dequantise(prosody.quantise(f0, periodicity, level[:, :n]))
        own, _ = prosody.Register(120.0)(f0, periodicity, torch.ones_like(f0, dtype=torch.bool))
        moved = f0 * torch.exp2(np.log2(voice.register) - own)
        index = torch.arange(grid.codes(n - delay))
        at = grid.unit(index) + delay
        source = Source(*(t[:, at] for t in (content, expression, moved, periodicity, level)))
        codes, _ = lm.generate(source, lm.start(voice.source(), voice.codes[None].long()), 0, 0.0, delay, 0.0)
        decoder = changer.codec.model.decode_stream(voice.codes[None].long())[1]
        wave, _ = changer.codec.model.decode_stream(codes, decoder)
    want = resample(wave.clamp(-0.9, 0.9), 24000, RATE)[0, : len(x)]
    torch.testing.assert_close(engine_out, want, atol=1e-4, rtol=0)
