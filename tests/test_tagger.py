"""The taggers of eval/ (vocal events, emotions) and the recipes that make them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import tiny
import torch
from sounds import RATE, voice

from vivavoce.core.checkpoint import load_tensors, save_tensors
from vivavoce.core.errors import CheckpointError, CorpusError
from vivavoce.eval.tagger import (
    EMOTIONS,
    EVENTS,
    LABELS,
    STEM,
    Tagger,
    TaggerConfig,
    load_tagger,
    shipped_emotion,
)

# tagger


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger()


def test_shipped_tagger_is_small_and_declares_labels_and_scores(tagger):
    assert STEM.with_suffix(".safetensors").stat().st_size < 2e6
    assert sum(p.numel() for p in tagger.parameters()) < 500_000
    assert set(tagger.thresholds) == set(LABELS) and "speech" in LABELS and "laugh" in EVENTS
    for split in ("valid", "test"):
        scores = tagger.card["scores"][split]
        assert 1 / 6 < scores["uar"] <= 1 and all(scores[k]["n"] > 0 for k in LABELS)
    assert not any("NC" in x for x in tagger.card["train_licences"])


def test_tags_are_probabilities_and_ignore_level(tagger):
    x = voice(0, 1.3)
    a, b = tagger.tag(x), tagger.tag(0.01 * x)
    assert tuple(a.scores) == LABELS and a.label in LABELS and set(a.fired) <= set(LABELS)
    assert a.frames.shape == (math.ceil(1.3 / 0.04), len(LABELS))
    assert all(0 <= v <= 1 for v in a.scores.values())
    assert np.allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-3)


def test_padding_in_a_batch_changes_nothing(tagger):
    x = torch.from_numpy(voice(1, 1.0))[None]
    mel = tagger.spectrum(x)
    padded = torch.cat((mel, torch.full((1, 31, mel.shape[2]), 3.0)), 1)
    with torch.no_grad():
        a, _ = tagger(mel, torch.tensor([50]))
        b, _ = tagger(padded, torch.tensor([50]))
    assert torch.allclose(a, b, atol=1e-5)


def test_spans_close_gaps_and_drop_blips(tagger):
    tags = tagger.tag(voice(0, 2.0))
    k = LABELS.index("laugh")
    tags.frames[:, k] = 0.0
    tags.frames[[*range(5, 10), *range(12, 20), 40], k] = 0.9
    tags.fired = ("laugh",)
    assert tags.spans("laugh") == [pytest.approx((0.2, 0.8))]
    assert tags.spans("cry") == []


def test_tagger_round_trip_and_foreign_files(tmp_path):
    torch.manual_seed(0)
    small = Tagger(TaggerConfig(dim=16, depth=1)).eval()
    small.save(tmp_path / "t", torch.float32)
    again = load_tagger(tmp_path / "t")
    assert again.tag(voice(0, 0.5)).scores == small.tag(voice(0, 0.5)).scores
    with pytest.raises(CheckpointError, match="missing"):
        load_tagger(tmp_path / "absent")
    card = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**card, "labels": ["laugh"]}))
    with pytest.raises(CheckpointError, match="other labels"):
        load_tagger(tmp_path / "t")


def make_pack(folder, lines: list[dict]) -> str:
    """A pack of half-second voices with these manifest fields."""
    with open(folder / "audio.i16", "wb") as f, open(folder / "manifest.jsonl", "w") as manifest:
        for i, line in enumerate(lines):
            f.write((voice(i, 0.5)[: 25 * 320] * 32767).astype(np.int16).tobytes())
            manifest.write(json.dumps({"id": str(i), "offset": 25 * i, "frames": 25, **line}) + "\n")
    np.zeros((len(lines) * 25, 2), np.float32).tofile(folder / "pitch.f32")
    np.zeros(len(lines) * 25, np.uint16).tofile(folder / "teacher.u16")
    (folder / "pack.json").write_text(json.dumps({"format": 1, "sample_rate": RATE, "hop": 320}))
    return str(folder)


def test_tagger_recipe_trains_exports_and_says_how_good_it_is(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from vivavoce.recipes.train_tagger import TaggerRecipe, run
    from vivavoce.recipes.trainer import TrainConfig

    kinds = ["laugh", "sob", "sigh", "scream", "groan", "none"]
    pack = make_pack(tmp_path, [{"vocalisation": kinds[i % 6], "split": ("train", "valid", "test")[i // 6]}
                                for i in range(18)])  # fmt: skip
    config = TaggerRecipe(pack=pack, model=TaggerConfig(dim=16, depth=1), batch_size=4,
                          train=TrainConfig(out=str(tmp_path / "run"), steps=3, threads=1))  # fmt: skip
    assert 0 <= run(config)["uar"] <= 1
    model = load_tagger(tmp_path / "run" / "export" / "tagger")
    test = model.card["scores"]["test"]
    assert test["n"] == 6 and model.card["train_clips"]["cry"] == 1
    assert all(test[k]["low"] <= test[k]["f1"] <= test[k]["high"] for k in LABELS)


def test_a_second_opinion_is_taught_beside_the_label(tmp_path, monkeypatch):
    """A probe of a Whisper's layers, fitted on others' clips; a run that goes on does not listen again."""
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    from vivavoce.recipes import second_opinion
    from vivavoce.recipes.train_tagger import TaggerRecipe, TaggerTask
    from vivavoce.recipes.trainer import TrainConfig

    tiny.whisper().save_pretrained(tmp_path / "whisper")
    kinds = ["laugh", "sob", "sigh", "scream", "groan", "none"]
    lines = [{"vocalisation": kinds[i % 6], "split": "train", "speaker": str(i // 6)} for i in range(36)]
    pack = make_pack(tmp_path, lines)
    t = np.arange(25 * 320) / RATE
    tones = [0.3 * np.sin(2 * np.pi * 200 * 2 ** (i % 6) * t) for i in range(36)]  # an octave a kind, but for one clip
    tones[7], wrong = tones[6], 7
    (np.concatenate(tones) * 32767).astype(np.int16).tofile(tmp_path / "audio.i16")
    config = TaggerRecipe(pack=pack, model=TaggerConfig(dim=16, depth=1), batch_size=64, join_probability=0.0,
                          teacher=str(tmp_path / "whisper"), train=TrainConfig(out=str(tmp_path / "run")))  # fmt: skip
    task = TaggerTask(config)
    said = np.stack([task.targets[str(i)] for i in range(36)])
    assert np.allclose(said.sum(1), 1.0, atol=1e-5)
    own = said[np.arange(36), [LABELS.index(TaggerTask.label(c)) for c in lines]]
    assert own.argmin() == wrong and 0.3 <= own[wrong] < own[np.arange(36) != wrong].mean() - 0.1
    batch = task.batch(np.random.default_rng(0))
    assert {tuple(x) for x in batch["target"].numpy()} <= {tuple(x) for x in said}
    heard, ever = [], second_opinion.Whisper.layers
    monkeypatch.setattr(second_opinion.Whisper, "layers", lambda *x: heard.append(0) or ever(*x))
    assert all(np.array_equal(x, said[int(k)]) for k, x in TaggerTask(config).targets.items()) and not heard
    kept = tmp_path / "run/teacher.safetensors"
    tensors, meta = load_tensors(kept)
    save_tensors(kept, {"features": tensors["features"][:30]}, meta)  # as if it had been stopped there
    assert all(np.array_equal(x, said[int(k)]) for k, x in TaggerTask(config).targets.items()) and len(heard) == 6
    shutil.copytree(tmp_path / "whisper", tmp_path / "another")
    TaggerTask(dataclasses.replace(config, teacher=str(tmp_path / "another")))
    assert len(heard) == 6 + 36
    alone = TaggerTask(dataclasses.replace(config, teacher=None)).targets
    assert {x.max() for x in alone.values()} == {1.0}
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TaggerTask(dataclasses.replace(config, teacher=str(tmp_path)))
    make_pack(tmp_path, [{**line, "speaker": "one"} for line in lines])
    with pytest.raises(CorpusError, match="one speaker alone"):
        TaggerTask(config)


def test_surer_labels_are_drawn_more_often():
    pytest.importorskip("accelerate")
    from vivavoce.recipes.train_tagger import class_pools

    clips = [{"vocalisation": "laugh", "vocalisation_conf": c} for c in (0.1, 0.4, 0.8, 0.4)]
    (members, cumulative), = class_pools(clips, LABELS, lambda c: c["vocalisation"], 1.0)["laugh"]
    weights = np.diff(cumulative, prepend=0)
    assert members == clips and weights == pytest.approx([1 / 3, 1, 2, 1])
    (_, even), = class_pools(clips, LABELS, lambda c: c["vocalisation"], 0.0)["laugh"]
    assert even.tolist() == [1, 2, 3, 4]


def test_emotion_recipe_leaves_out_what_may_not_be_published(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from vivavoce.recipes.train_emotion import EmotionRecipe, EmotionTask, run
    from vivavoce.recipes.trainer import TrainConfig

    def clips(split: str, source: str, vocalisation: str, licence: str) -> list[dict]:
        return [{"emotion": k, "vocalisation": vocalisation, "source": source, "licence": licence, "split": split}
                for k in EMOTIONS]  # fmt: skip

    lines = clips("train", "bursts", "burst", "Apache-2.0") + clips("train", "acted", "none", "CC-BY-NC-SA-4.0")
    lines += [{"emotion": "neutral", "source": "read", "licence": "CC-BY-4.0", "split": "train"}]
    lines += clips("valid", "bursts", "burst", "Apache-2.0") + clips("test", "acted", "none", "CC-BY-NC-SA-4.0")
    config = EmotionRecipe(pack=make_pack(tmp_path, lines), batch_size=4,
                           model=TaggerConfig(dim=16, depth=1, exclusive=True),
                           train=TrainConfig(out=str(tmp_path / "run"), steps=2, threads=1))  # fmt: skip
    run(config)
    model = load_tagger(tmp_path / "run" / "export" / "emotion", EMOTIONS)
    assert model.card["train_licences"] == ["Apache-2.0", "CC-BY-4.0"]
    assert model.card["train_clips"] == {k: 1 + (k == "neutral") for k in EMOTIONS}
    acted = model.card["scores"]["test"]["speech:acted"]
    assert acted["n"] == 8 and acted["chance"] == 0.125 and np.sum(acted["confusion"]) == 8
    assert "bursts" in model.card["scores"]["valid"] and "speech:read" not in model.card["scores"]["valid"]
    assert sum(model.tag(voice(0, 0.5)).scores.values()) == pytest.approx(1.0, abs=1e-4)
    private = EmotionTask(dataclasses.replace(config, exclude_licences=[]))
    assert sum(len(m) for m, _ in private.pools["happy"]) == 2
    assert len(EmotionTask(dataclasses.replace(config, read_speech=False)).clips) == 8


def test_the_emotion_card_states_what_it_is_good_for():
    card = shipped_emotion().card
    assert not any("NC" in x for x in card["train_licences"])
    for v in card["scores"]["test"].values():
        assert 0 < v["low"] <= v["uar"] <= v["high"] <= 1 and v["n"] == sum(v["clips"].values())
        assert v["uar"] == pytest.approx(np.mean(list(v["recall"].values())), abs=1e-3)
    assert card["scores"]["test"]["bursts"]["low"] > 1.5 * card["scores"]["test"]["bursts"]["chance"]
