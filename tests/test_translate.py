"""Unit BPE, alignment, aligned pairs, the translator, and `convert --mode translate`."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parallel
import pytest
import soundfile
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from vivavoce.changer import Changer
from vivavoce.cli import main
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.lm import LMConfig, VoiceLM
from vivavoce.lm.translator import Bounds, Pieces, Translator, TranslatorConfig, loops, most_repeats
from vivavoce.recipes import pairs, tokenise, train_lm, train_translate, unit_bpe
from vivavoce.recipes.tokenise import Tokens
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.translate import TranslationMode, stretches
from vivavoce.units import UnitEncoder
from vivavoce.units.bpe import UnitBPE

for package in ("accelerate", "pyarrow", "tensorboard", "sentencepiece", "sklearn"):  # the extra `train`
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return parallel.build(tmp_path_factory.mktemp("parallel"))


# ---- pairs --------------------------------------------------------------------------------------------


def test_what_is_a_script() -> None:
    assert pairs.script_of({"language": "en", "text": "Kids ARE talking,  by the door!"}) == pairs.script_of(
        {"language": "en", "text": "kids are talking by the door."})  # fmt: skip
    assert pairs.script_of({"language": "en", "text": "no"}) != pairs.script_of({"language": "it", "text": "no"})
    assert pairs.script_of({"script": "7", "text": "a"}) == pairs.script_of({"script": "7", "text": "b"})
    assert pairs.script_of({"text": "..."}) is None and pairs.script_of({}) is None
    clips = [{"speaker": s, "emotion": e, "script": k} for s, e, k in
             (("a", "x", "1"), ("b", "x", "1"), ("a", "y", "1"), ("a", "x", "1"), ("b", "x", "2"))]  # fmt: skip
    assert pairs.partners(clips) == [[1, 2], [0, 2, 3], [0, 1, 3], [1, 2], []]


def test_aligned_pairs_follow_the_true_path(corpus: SimpleNamespace, tmp_path: Path) -> None:
    """With phones for units: at each frame of a clip, its partner's aligned unit is the phone that is said there."""
    config = pairs.PairsConfig(str(corpus.phones), str(tmp_path / "p"), str(corpus.pack), views=2)
    result = pairs.run(config)
    assert result["pairs"] == 2 * 4 * 8 and result["refused"] == 0  # two views of 32 clips with words
    tokens, before = Tokens(tmp_path / "p"), Tokens(corpus.phones)
    for split in ("train", "valid"):
        now, then = tokens.split(split), before.split(split)
        assert [c["id"] for c in now.clips] == [c["id"] for c in then.clips]
        for column in ("content", "codes", "prosody", "expression"):
            assert np.array_equal(getattr(now, column), getattr(then, column))
        agree, stretched = [], []
        for clip, a, b in zip(now.clips, now.offsets, now.offsets[1:]):
            if clip["vocalisation"] != "none":
                continue
            agree += [now.views[v][0][a:b] == now.content[a:b] for v in (0, 1)]
            others = [c["id"] for c in now.clips if c["text"] == clip["text"] and c["id"] != clip["id"]]
            for other in (corpus.labels[o] for o in others):
                index = np.linspace(0, len(other) - 1, b - a).round().astype(int)
                stretched.append(other[index] == now.content[a:b])
        found, linear = np.mean(np.concatenate(agree)), np.mean(np.concatenate(stretched))
        assert found > 0.8 and 1 - found < 0.6 * (1 - linear)  # than to stretch evenly
    recipe = train_lm.LMRecipe(
        str(tmp_path / "p"), TrainConfig(str(tmp_path / "lm"), steps=2), batch_size=2, crop_frames=20,
        prompt_frames=[20], valid_batches=1, model=LMConfig(
            content_units=tokens.head["content_units"], n_codebooks=2, codebook_size=32, dim=16, layers=1, heads=1,
            hidden=16, depth_hidden=16, context=10))  # fmt: skip
    assert np.isfinite(train_lm.run(recipe)["nll_0"])


def test_pairs_by_a_models_embedding(corpus: SimpleNamespace, tmp_path: Path) -> None:
    """Units that are phones need no sound to be aligned: any embedding that tells them apart will do."""
    VoiceLM(LMConfig(content_units=Tokens(corpus.phones).head["content_units"], dim=16, heads=1, layers=1)
            ).save_pretrained(tmp_path / "lm")  # fmt: skip
    config = pairs.PairsConfig(str(corpus.phones), str(tmp_path / "p"), lm=str(tmp_path / "lm"), views=1,
                               unpaired=False)  # fmt: skip
    assert pairs.run(config)["clips"] == 32  # laughs have no partner
    split = Tokens(tmp_path / "p").split("train")
    assert np.mean(split.views[0][0][:] == split.content[:]) > 0.97


def test_no_pairs(corpus: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pack= .* or lm="):
        pairs.run(pairs.PairsConfig(str(corpus.phones), str(tmp_path / "a")))
    with pytest.raises(CorpusError, match="no two clips share a script"):
        pairs.run(pairs.PairsConfig(str(corpus.phones), str(tmp_path / "b"), str(corpus.pack), worst=-1.0))
    with pytest.raises(CorpusError, match="holds tokens already"):
        pairs.run(pairs.PairsConfig(str(corpus.phones), str(tmp_path / "b"), str(corpus.pack)))
    with pytest.raises(CorpusError, match="nothing of split 'train'"):
        pairs.run(pairs.PairsConfig(str(corpus.phones), str(tmp_path / "c"), str(corpus.pack), worst=-1.0,
                                    unpaired=False))  # fmt: skip


# ---- the translator -----------------------------------------------------------------------------------

SHAPE = {"max_frames": 20, "dim": 32, "layers": 2, "heads": 2, "hidden": 48}


def translator(**kw: object) -> Translator:
    torch.manual_seed(0)
    model = Translator(TranslatorConfig(pieces=30, emotions=["glad", "sad"], **SHAPE)).eval()
    model.piece.weight.data.mul_(2.0)
    return model


def pieces(n: int, seed: int = 0) -> Pieces:
    g = torch.Generator().manual_seed(seed)
    return Pieces(torch.randint(0, 30, (1, n), generator=g), torch.randint(1, 9, (1, n), generator=g))


def padded(x: Pieces, n: int) -> Pieces:
    more = torch.full((1, n), -1)
    return Pieces(torch.cat((x.pieces, more), 1), torch.cat((x.frames, 0 * more), 1))


@torch.no_grad()
def test_cache_equals_teacher_forcing() -> None:
    model, source, target, prompt = translator(), pieces(12), pieces(9, 1), pieces(7, 2)
    losses, frames = model(source, target, prompt, torch.tensor([0]))
    step, style = model._prefix(source, 20), model.style(prompt, torch.tensor([0]))
    said, last = [model.end, *target.pieces[0].tolist()], [0, *target.frames[0].tolist()]
    for i, now in enumerate([*said[1:], model.end]):
        h = step(said[i], last[i], style)
        assert -torch.log_softmax(model._next(h), -1)[now] == pytest.approx(float(losses[0, i]), abs=1e-4)
        if now != model.end:
            logits = torch.log_softmax(model._frames(h, torch.tensor(now)), -1)
            assert -logits[last[i + 1] - 1] == pytest.approx(float(frames[0, i]), abs=1e-4)


def test_padding_changes_nothing() -> None:
    model, source, target, prompt = translator(), pieces(12), pieces(9, 1), pieces(7, 2)
    a, b = model(source, target, prompt, torch.tensor([1]))
    x, y = model(padded(source, 3), padded(target, 4), padded(prompt, 2), torch.tensor([1]))
    torch.testing.assert_close(x[:, :10], a, atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, :9], b, atol=1e-5, rtol=0)
    assert not x[:, 10:].any() and not y[:, 9:].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_translations_stay_in_bounds(temperature: float) -> None:
    model, source, prompt = translator(), pieces(12), pieces(7, 2)
    total = int(source.frames.sum())
    for seed in range(4):
        found = model.translate(source, prompt, None, seed, temperature, Bounds(0.7, 1.3))
        again = model.translate(source, prompt, None, seed, temperature, Bounds(0.7, 1.3))
        assert torch.equal(found.pieces, again.pieces) and torch.equal(found.frames, again.frames)
        assert found.frames.min() >= 1 and 1 <= found.frames.sum() <= np.ceil(1.3 * total)
        assert found.frames.sum() >= 0.7 * total or found.pieces.shape[1] >= 1.3 * 12
        assert most_repeats(found.pieces[0].tolist(), 8) < 3  # greedy decoding of random weights is all loops
    if temperature:
        others = [model.translate(source, prompt, None, s, temperature).pieces.tolist() for s in range(4)]
        assert len(set(map(str, others))) > 1


def test_prompt_and_emotion_are_heard() -> None:
    model, source, target = translator(), pieces(12), pieces(9, 1)
    losses = [model(source, target, pieces(7, s), torch.tensor([e]))[0] for s, e in ((2, 0), (3, 0), (2, 1))]
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(losses, 2))
    with pytest.raises(ValueError, match="knows glad, sad"):
        model.translate(source, target, "bored")
    with pytest.raises(ValueError, match="not empty"):
        model.translate(Pieces(torch.zeros(1, 0).long(), torch.zeros(1, 0).long()), target)


def test_loop_guard() -> None:
    assert loops([1, 2, 1, 2, 1], 3, 8) == [2] and loops([5, 5], 3, 8) == [5] and loops([5], 3, 8) == []
    assert loops([1, 2, 3, 1, 2, 3], 3, 8) == [] and loops([1, 2, 3, 1, 2, 3, 1, 2], 3, 8) == [3]
    assert loops([1, 2, 3, 1, 2, 3, 1, 2], 3, 2) == []
    assert most_repeats([1, 2, 1, 2, 1, 2, 9], 8) == 3 and most_repeats([1, 2, 3], 8) == 1 == most_repeats([], 8)


def test_it_learns_to_say_again_more_slowly() -> None:
    """Target: the source, each piece as long again. After a little training it does so for sequences it never saw."""
    torch.manual_seed(0)
    model = Translator(TranslatorConfig(pieces=6, max_frames=8, dim=48, layers=2, heads=2, hidden=64))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    g = torch.Generator().manual_seed(1)

    def draw() -> tuple[Pieces, Pieces]:
        x = torch.randint(0, 6, (24, 8), generator=g)
        x = Pieces(x, torch.randint(1, 4, x.shape, generator=g))
        return x, Pieces(x.pieces, 2 * x.frames)

    for _ in range(220):
        source, target = draw()
        p, d = model(source, target, source, torch.zeros(24, dtype=torch.long))
        optimizer.zero_grad()
        (p.mean() + d.mean()).backward()
        optimizer.step()
    source, target = draw()
    one = Pieces(source.pieces[:1], source.frames[:1])
    with torch.no_grad():
        p, d = model(source, target, source, torch.zeros(24, dtype=torch.long))
    assert p.mean() < 0.5 * np.log(7) and d.mean() < 0.5 * np.log(8)
    found = model.eval().translate(one, one)
    assert 1.3 < found.frames.sum() / one.frames.sum() <= 2.0


# ---- recipe and command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(corpus: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A translator by the recipes. Its units are phones, which the tiny model takes for its own."""
    out = tmp_path_factory.mktemp("trained")
    fitted = unit_bpe.run(unit_bpe.UnitBPERecipe(str(corpus.phones), str(out / "bpe"), pieces=60, kind="bpe"))
    recipe = train_translate.TranslateRecipe(
        str(corpus.phones), str(out / "bpe"), TrainConfig(str(out / "run"), steps=6, warmup_steps=2), batch_size=3,
        model=TranslatorConfig(**SHAPE), hold_out_scripts=0.3, valid_pairs=6, valid_decodes=2)  # fmt: skip
    return SimpleNamespace(fitted=fitted, recipe=recipe, result=train_translate.run(recipe), out=out,
                           folder=out / "run" / "export")  # fmt: skip


def test_recipes_run(trained: SimpleNamespace, corpus: SimpleNamespace) -> None:
    assert trained.fitted["values_a_piece"] >= 1 and trained.fitted["pieces_a_second"] <= 50
    model = Translator.from_pretrained(trained.folder)
    assert model.config.emotions == ["calm", "glad"]
    assert model.config.pieces == UnitBPE.load(trained.folder / "bpe").pieces
    task = train_translate.TranslateTask(trained.recipe)
    held = {c["text"] for c in task.train.split.clips if train_translate.held_out(c, 0.3)}
    assert held and {task.train.split.clips[t]["text"] for _, t in task.train.held} == held
    assert not {task.train.split.clips[t]["text"] for _, t in task.train.parallel} & held
    drawn = [task.train.draw(np.random.default_rng(s)) for s in range(20)]
    assert all(r["source"][1].min() >= 1 and len(r["target"][0]) for r in drawn)
    for name in ("seen", "unseen"):
        assert {f"{k}_{name}" for k in ("pieces", "frames", "uer", "uer_copy", "length_copy")} <= set(trained.result)
    assert all(np.isfinite(v) for v in trained.result.values())


def test_recipe_refuses(trained: SimpleNamespace, corpus: SimpleNamespace, tmp_path: Path) -> None:
    UnitBPE.train(parallel.babble(7), 7, 12).save(tmp_path)
    with pytest.raises(ConfigError, match="train unit BPE on these tokens"):
        train_translate.TranslateTask(dataclasses.replace(trained.recipe, bpe=str(tmp_path)))
    with pytest.raises(CorpusError, match="not the pack behind the tokens"):
        lines = (corpus.pack / "manifest.jsonl").read_text().splitlines()
        for path in corpus.pack.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "manifest.jsonl").write_text(lines[0] + "\n")
        unit_bpe.run(unit_bpe.UnitBPERecipe(str(corpus.phones), str(tmp_path / "b"), pieces=60, pack=str(tmp_path)))


def test_packed_units_from_tokens_to_sound(corpus: SimpleNamespace, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Units that pack several levels go the whole way by their classes; the source's own are used where they can be."""
    model = tmp_path / "model"
    shutil.copytree(corpus.model, model)
    shutil.rmtree(model / "voices")
    torch.manual_seed(3)
    packed = {"content_units": 5**12, "content_levels": [5] * 12}
    UnitEncoder(dataclasses.replace(tiny.UNITS, **packed)).save_pretrained(model / "units")
    VoiceLM(dataclasses.replace(tiny.LM, **packed)).save_pretrained(model / "lm")
    tokens = tmp_path / "tokens"
    tokenise.run(tokenise.TokeniseConfig(str(corpus.pack), str(model / "codec"), str(model / "units"), str(tokens),
                                         splits=["train", "valid"], views=1))  # fmt: skip
    recipe = unit_bpe.UnitBPERecipe(str(tokens), str(tmp_path / "bpe"), pieces=40, coarse=20, pack=str(corpus.pack))
    result = unit_bpe.run(recipe)
    assert 0 <= result["teacher_information"] <= 1 and result["values_a_second"] <= 50
    train = train_translate.TranslateRecipe(
        str(tokens), str(tmp_path / "bpe"), TrainConfig(str(tmp_path / "run"), steps=1), batch_size=2,
        model=TranslatorConfig(**SHAPE), valid_pairs=2, valid_decodes=1)  # fmt: skip
    train_translate.run(train)
    assert pairs.run(pairs.PairsConfig(str(tokens), str(tmp_path / "p"), lm=str(model / "lm"), views=1))["pairs"] > 0
    changer = Changer.from_pretrained(model)
    mode = TranslationMode(changer, tmp_path / "run" / "export", model)
    source = Tokens(tokens).split("valid").content[:60].astype(np.int64)
    when = np.arange(60)
    said = mode.bpe.decode(*mode.bpe.encode(source))
    assert np.array_equal(mode.detailed(source, said, when), source)  # the same classes: its own units
    other = mode.bpe.coarse.typical[(mode.bpe.coarse.classes(source) + 1) % len(mode.bpe.coarse)]  # type: ignore[union-attr, arg-type]
    assert np.array_equal(mode.detailed(source, other, when), other)  # other classes: their typical ones
    soundfile.write(tmp_path / "in.wav", tiny.voiced(1.0).numpy(), 16000)
    soundfile.write(tmp_path / "ref.wav", tiny.voiced(2.0, f0=200.0).numpy(), 16000)
    assert convert(model, tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--voice", tmp_path / "ref.wav", "--mode",
                   "translate", "--translator", tmp_path / "run" / "export") == 0, capsys.readouterr().err  # fmt: skip


def convert(model: Path, *args: object) -> int:
    try:
        return main(["convert", *map(str, args), "--model", str(model)])
    except SystemExit as e:
        return int(e.code or 0)


def test_convert_by_translation(trained: SimpleNamespace, corpus: SimpleNamespace, tmp_path: Path,
                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    source, out = tmp_path / "in.wav", tmp_path / "out.wav"
    soundfile.write(source, tiny.voiced(1.5, 22050).numpy(), 22050)
    mode = ("--voice", "ada", "--mode", "translate", "--translator", trained.folder)
    heard = []
    for more in ((), (), ("--seed", 5), ("--to-emotion", "glad")):
        assert convert(corpus.model, source, "-o", out, *mode, *more) == 0, capsys.readouterr().err
        x, rate = soundfile.read(out)
        assert rate == 22050 and 0.45 < len(x) / (1.5 * rate) < 2.1 and np.abs(x).max() > 1e-3
        heard.append(x)
    assert np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])
    capsys.readouterr()
    assert convert(corpus.model, source, "-o", out, *mode, "--to-emotion", "bored") == 1
    assert "knows calm, glad" in capsys.readouterr().err
    other = tiny.build(tmp_path / "other", seed=3)
    assert convert(other, source, "-o", out, *mode) == 1
    assert "another model's units" in capsys.readouterr().err
    assert convert(corpus.model, source, "-o", out, *mode[:-1], tmp_path) == 1
    assert "no translator" in capsys.readouterr().err
    for args in ((source, "--voice", "ada", "--mode", "translate"), ("-", *mode),
                 (source, "--voice", "ada", "--translator", trained.folder)):  # fmt: skip
        assert convert(corpus.model, *args) == 2


@given(st.lists(st.floats(-80, 0), min_size=1, max_size=300), st.integers(1, 20), st.integers(30, 60))
def test_stretches_cover_everything_once(level: list[float], shortest: int, longest: int) -> None:
    cuts = stretches(np.array(level), shortest, longest)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(level)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))
    assert all(0 < b - a <= longest for a, b in cuts)
    assert all(b - a >= shortest for a, b in cuts[:-1])


def test_stretches_are_cut_where_it_is_quiet() -> None:
    level = np.full(500, -20.0)
    level[270:290] = -70.0
    ((_, cut), *_) = stretches(level, 200, 400)
    assert 270 <= cut <= 290
